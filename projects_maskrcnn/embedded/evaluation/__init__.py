"""Running a model over a dataset and measuring what it predicts."""

from .cityscapes_evaluation import CityscapesInstanceEvaluator
from .coco_evaluation import COCOEvaluator, instances_to_coco_json
from .evaluator import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from .pascal_voc_evaluation import PascalVOCDetectionEvaluator
from .testing import flatten_results_dict, print_csv_format, verify_results
