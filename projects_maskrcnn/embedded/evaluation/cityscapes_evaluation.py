"""Cityscapes' instance-level metric, computed by its own scripts."""

import glob
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import MetadataCatalog
from ..utils import comm
from ..utils.file_io import PathManager
from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)


class CityscapesInstanceEvaluator(DatasetEvaluator):
    """AP and AP50 of masks, by cityscapesscripts. Stands for Detectron2's `CityscapesInstanceEvaluator`.

    The processes share a temporary folder, so they have to run on one machine.

    Args:
        dataset_name: a registered dataset whose metadata has ``thing_classes`` (Cityscapes' names) and
            ``gt_dir``, the folder of ``{city}/*_gtFine_instanceIds.png``.

    Raises:
        ImportError: cityscapesscripts is not installed, or too old for the installed numpy.
    """

    def __init__(self, dataset_name: str) -> None:
        try:
            from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts
            from cityscapesscripts.helpers.labels import name2label
        except ImportError as error:
            raise ImportError(
                f"Cityscapes' metric needs its scripts ({error}): pip install cityscapesscripts"
            ) from error
        if not hasattr(np, "in1d") and "np.in1d" in Path(scripts.__file__).read_text():
            raise ImportError("the installed cityscapesscripts needs an older numpy: pip install 'numpy<2.4'")
        self._scripts = scripts
        self._name2label = name2label
        self._metadata = MetadataCatalog.get(dataset_name)

    def reset(self) -> None:
        """Begins a new folder of predictions."""
        if comm.get_local_size() != comm.get_world_size():
            raise RuntimeError("CityscapesInstanceEvaluator works on one machine only")
        self._own_folder = tempfile.TemporaryDirectory(prefix="cityscapes_eval_")
        self._folder = comm.all_gather(self._own_folder.name)[0]
        logger.info("Writing cityscapes results to temporary directory %s ...", self._folder)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Writes a batch: a text file an image, which names a PNG, class and score an instance.

        Args:
            inputs: dicts with ``file_name``.
            outputs: dicts with ``instances``: ``pred_classes``, ``scores`` and ``pred_masks`` (N, H, W).
        """
        for image, output in zip(inputs, outputs, strict=True):
            stem = os.path.splitext(os.path.basename(image["file_name"]))[0]
            instances = output["instances"].to("cpu")
            lines = []
            for i in range(len(instances)):
                name = self._metadata.thing_classes[instances.pred_classes[i]]
                png = f"{stem}_{i}_{name}.png"
                mask = np.asarray(instances.pred_masks[i], dtype=np.uint8) * 255
                Image.fromarray(mask).save(os.path.join(self._folder, png))
                lines.append(f"{png} {self._name2label[name].id} {instances.scores[i].item()}\n")
            with open(os.path.join(self._folder, f"{stem}_pred.txt"), "w") as f:
                f.writelines(lines)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """``{"segm": {"AP": ..., "AP50": ...}}`` on the main process.

        Raises:
            FileNotFoundError: no ground truth under the dataset's ``gt_dir``.
        """
        comm.synchronize()
        if not comm.is_main_process():
            return None
        pattern = os.path.join(PathManager.get_local_path(self._metadata.gt_dir), "*", "*_gtFine_instanceIds.png")
        ground_truth = sorted(glob.glob(pattern))
        if not ground_truth:
            raise FileNotFoundError(
                f"no Cityscapes ground truth at {pattern}: the download gtFine_trainvaltest.zip has it"
            )
        logger.info("Evaluating results under %s ...", self._folder)
        scripts, args = self._scripts, self._scripts.args
        args.predictionPath = self._folder
        args.predictionWalk = None
        args.quiet = True
        args.gtInstancesFile = os.path.join(self._folder, "gtInstances.json")
        # The steps of evaluateImgLists, which writes a file into the working directory besides.
        scripts.setInstanceLabels(args)
        instances = scripts.getGtInstances(ground_truth, args)
        predictions = [scripts.getPrediction(file, args) for file in ground_truth]
        matches = scripts.matchGtWithPreds(predictions, ground_truth, instances, args)
        averages = scripts.computeAverages(scripts.evaluateMatches(matches, args), args)
        self._own_folder.cleanup()
        return {"segm": {"AP": averages["allAp"] * 100, "AP50": averages["allAp50%"] * 100}}
