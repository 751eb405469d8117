"""The paper's tables again: at small scale on one's own machine, and what they cost at full scale."""
