"""What several parts of the framework use: registries, files, logging, distributed communication."""
