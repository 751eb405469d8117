"""Every config key and its default.

Keys and defaults are Detectron2's, all of them, so that its YAML files and the `config.yaml` that it writes
load here, and ours there. MODEL.DEVICE alone is chosen by what the machine has. A name that ends in _TRAIN or
_TEST applies to training or testing alone.
"""

import torch

from .config import VERSION
from .config import CfgNode as CN

_C = CN()
_C.VERSION = VERSION  # of the config format
_C.OUTPUT_DIR = "./output"
_C.SEED = -1  # negative: a new one every run
_C.VIS_PERIOD = 0  # iterations between pictures of training batches in the event storage; 0: none
_C.CUDNN_BENCHMARK = False  # let cuDNN time its algorithms for each new input size
_C.FLOAT32_PRECISION = ""  # of matrix products: "highest", "high" or "medium"; "": torch's own default

# ------------------------------------------------------------------------------------------------- Model
model = _C.MODEL = CN()
model.META_ARCHITECTURE = "GeneralizedRCNN"
model.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
model.WEIGHTS = ""  # path or URL of the checkpoint to start from
model.MASK_ON = False
model.KEYPOINT_ON = False
model.LOAD_PROPOSALS = False  # take proposals from DATASETS.PROPOSAL_FILES_*
# Mean and standard deviation of pixels, 0 to 255, one a channel of INPUT.FORMAT. The mean is ImageNet's. The
# deviation is 1 because MSRA's weights have it in their first convolution; else [57.375, 57.12, 58.395].
model.PIXEL_MEAN = [103.530, 116.280, 123.675]
model.PIXEL_STD = [1.0, 1.0, 1.0]

backbone = model.BACKBONE = CN()
backbone.NAME = "build_resnet_backbone"  # in BACKBONE_REGISTRY
backbone.FREEZE_AT = 2  # freeze the first so many stages: 1 is the stem, 2 also res2; 0: none

resnets = model.RESNETS = CN()
resnets.DEPTH = 50
resnets.OUT_FEATURES = ["res4"]  # C4 takes res4, FPN res2 to res5
resnets.NUM_GROUPS = 1  # of the 3x3 convolutions; more than 1 makes it a ResNeXt
resnets.WIDTH_PER_GROUP = 64
resnets.NORM = "FrozenBN"  # or "BN", "SyncBN", "GN"
resnets.STRIDE_IN_1X1 = True  # as in MSRA's weights; False, in the 3x3, as in torchvision's and X-101's
resnets.RES5_DILATION = 1  # 2 for DC5
resnets.RES2_OUT_CHANNELS = 256  # doubles with each later stage; 64 for
resnets.STEM_OUT_CHANNELS = 64
resnets.DEFORM_ON_PER_STAGE = [False, False, False, False]  # deformable 3x3 convolutions in res2 to res5
resnets.DEFORM_MODULATED = False  # version 2, with a mask
resnets.DEFORM_NUM_GROUPS = 1

fpn = model.FPN = CN()
fpn.IN_FEATURES = []  # the backbone's maps, each of twice the stride of the one before
fpn.OUT_CHANNELS = 256
fpn.NORM = ""  # "": none; or "GN", ...
fpn.FUSE_TYPE = "sum"  # or "avg": how top-down and lateral maps join

# --------------------------------------------------------------------------------------------- Proposals
proposal_generator = model.PROPOSAL_GENERATOR = CN()
proposal_generator.NAME = "RPN"  # in PROPOSAL_GENERATOR_REGISTRY, or "PrecomputedProposals"
proposal_generator.MIN_SIZE = 0  # drop proposals with a side no longer than this, in pixels of the input

anchors = model.ANCHOR_GENERATOR = CN()
anchors.NAME = "DefaultAnchorGenerator"  # in ANCHOR_GENERATOR_REGISTRY
# One list a feature map of RPN.IN_FEATURES, or one list for all.
anchors.SIZES = [[32, 64, 128, 256, 512]]  # square roots of areas, in pixels of the input
anchors.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]  # height / width
anchors.ANGLES = [[-90, 0, 90]]  # degrees, of rotated anchors
anchors.OFFSET = 0.0  # of the first centre from the image's corner, in strides: [0, 1)

rpn = model.RPN = CN()
rpn.HEAD_NAME = "StandardRPNHead"  # in RPN_HEAD_REGISTRY
rpn.IN_FEATURES = ["res4"]
rpn.CONV_DIMS = [-1]  # channels of the head's convolutions; -1: as many as its input
rpn.BOUNDARY_THRESH = -1  # ignore anchors further outside the image, in pixels; negative: none
# Anchors whose best IoU is below the first are background (0), from the second on foreground (1), and between
# them ignored (-1).
rpn.IOU_THRESHOLDS = [0.3, 0.7]
rpn.IOU_LABELS = [0, -1, 1]
rpn.BATCH_SIZE_PER_IMAGE = 256  # anchors sampled for the loss
rpn.POSITIVE_FRACTION = 0.5  # of them foreground, at most
rpn.BBOX_REG_LOSS_TYPE = "smooth_l1"  # or "giou", "diou", "ciou"
rpn.BBOX_REG_LOSS_WEIGHT = 1.0
rpn.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # scale of the targets (dx, dy, dw, dh)
rpn.SMOOTH_L1_BETA = 0.0  # where L1 turns into L2; 0: L1 throughout
rpn.LOSS_WEIGHT = 1.0  # of both losses, objectness and boxes
# Proposals kept before NMS, by score, per feature map; and after it, per image.
rpn.PRE_NMS_TOPK_TRAIN = 12000
rpn.PRE_NMS_TOPK_TEST = 6000
rpn.POST_NMS_TOPK_TRAIN = 2000
rpn.POST_NMS_TOPK_TEST = 1000
rpn.NMS_THRESH = 0.7

# --------------------------------------------------------------------------------------------- RoI heads
roi_heads = model.ROI_HEADS = CN()
roi_heads.NAME = "Res5ROIHeads"  # in ROI_HEADS_REGISTRY
roi_heads.NUM_CLASSES = 80  # without background
roi_heads.IN_FEATURES = ["res4"]  # of all heads
roi_heads.IOU_THRESHOLDS = [0.5]  # proposals of at least this IoU are foreground
roi_heads.IOU_LABELS = [0, 1]
roi_heads.BATCH_SIZE_PER_IMAGE = 512  # proposals sampled for the losses
roi_heads.POSITIVE_FRACTION = 0.25  # of them foreground, at most
roi_heads.PROPOSAL_APPEND_GT = True  # the ground truth's boxes join the proposals in training
roi_heads.SCORE_THRESH_TEST = 0.05  # drop detections of lower scores: 0 gains 0.2 to 0.3 AP, and is slow
roi_heads.NMS_THRESH_TEST = 0.5

# In every head: POOLER_RESOLUTION is the side of what is pooled from each RoI. POOLER_SAMPLING_RATIO is the
# samples a bin along each axis, 0 for as many as the bin has pixels. POOLER_TYPE is "ROIAlignV2" (aligned:
# half a pixel from version 1), "ROIAlign" or "ROIPool".
box = model.ROI_BOX_HEAD = CN()
box.NAME = ""  # in ROI_BOX_HEAD_REGISTRY; C4 has none
box.POOLER_RESOLUTION = 14
box.POOLER_SAMPLING_RATIO = 0
box.POOLER_TYPE = "ROIAlignV2"
box.NUM_CONV = 0
box.CONV_DIM = 256
box.NUM_FC = 0  # fully connected layers, after the convolutions
box.FC_DIM = 1024
box.NORM = ""  # of the convolutions: "", "GN", "SyncBN", ...
box.CLS_AGNOSTIC_BBOX_REG = False  # one box a RoI, not one for each class
box.BBOX_REG_LOSS_TYPE = "smooth_l1"  # or "giou", "diou", "ciou"
box.BBOX_REG_LOSS_WEIGHT = 1.0
box.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # scale of the targets (dx, dy, dw, dh): about unit variance
box.SMOOTH_L1_BETA = 0.0  # where L1 turns into L2; 0: L1 throughout
box.TRAIN_ON_PRED_BOXES = False  # the mask and keypoint heads train on the boxes predicted, not on proposals
# The federated loss of LVIS: sigmoid cross entropy over some of the classes, drawn by their frequency.
box.USE_FED_LOSS = False
box.USE_SIGMOID_CE = False
box.FED_LOSS_FREQ_WEIGHT_POWER = 0.5
box.FED_LOSS_NUM_CLASSES = 50

cascade = model.ROI_BOX_CASCADE_HEAD = CN()  # one entry a stage
cascade.BBOX_REG_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
cascade.IOUS = (0.5, 0.6, 0.7)

mask = model.ROI_MASK_HEAD = CN()
mask.NAME = "MaskRCNNConvUpsampleHead"  # in ROI_MASK_HEAD_REGISTRY
mask.POOLER_RESOLUTION = 14  # the mask is twice as large
mask.POOLER_SAMPLING_RATIO = 0
mask.POOLER_TYPE = "ROIAlignV2"
mask.NUM_CONV = 0
mask.CONV_DIM = 256
mask.NORM = ""
mask.CLS_AGNOSTIC_MASK = False  # one mask a RoI, not one for each class

keypoint = model.ROI_KEYPOINT_HEAD = CN()
keypoint.NAME = "KRCNNConvDeconvUpsampleHead"  # in ROI_KEYPOINT_HEAD_REGISTRY
keypoint.POOLER_RESOLUTION = 14  # the heatmap is four times as large
keypoint.POOLER_SAMPLING_RATIO = 0
keypoint.POOLER_TYPE = "ROIAlignV2"
keypoint.CONV_DIMS = (512,) * 8
keypoint.NUM_KEYPOINTS = 17  # COCO's
keypoint.MIN_KEYPOINTS_PER_IMAGE = 1  # leave images with fewer visible ones out of training
# Divide the loss by the visible keypoints of the batch; else by all that there could be, so that a batch with
# few visible ones weighs less (LOSS_WEIGHT 4 suits then).
keypoint.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = True
keypoint.LOSS_WEIGHT = 1.0

# ---------------------------------------------------- Other families, whose keys complete files may carry
sem_seg = model.SEM_SEG_HEAD = CN()
sem_seg.NAME = "SemSegFPNHead"
sem_seg.IN_FEATURES = ["p2", "p3", "p4", "p5"]
sem_seg.IGNORE_VALUE = 255  # label without loss
sem_seg.NUM_CLASSES = 54
sem_seg.CONVS_DIM = 128
sem_seg.COMMON_STRIDE = 4  # of the output
sem_seg.NORM = "GN"
sem_seg.LOSS_WEIGHT = 1.0

panoptic = model.PANOPTIC_FPN = CN()
panoptic.INSTANCE_LOSS_WEIGHT = 1.0
panoptic.COMBINE = CN()
panoptic.COMBINE.ENABLED = True
panoptic.COMBINE.OVERLAP_THRESH = 0.5
panoptic.COMBINE.STUFF_AREA_LIMIT = 4096  # pixels
panoptic.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.5

retinanet = model.RETINANET = CN()
retinanet.NUM_CLASSES = 80
retinanet.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
retinanet.NUM_CONVS = 4
retinanet.NORM = ""
retinanet.IOU_THRESHOLDS = [0.4, 0.5]
retinanet.IOU_LABELS = [0, -1, 1]
retinanet.PRIOR_PROB = 0.01  # of foreground, when training starts
retinanet.SCORE_THRESH_TEST = 0.05
retinanet.TOPK_CANDIDATES_TEST = 1000
retinanet.NMS_THRESH_TEST = 0.5
retinanet.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
retinanet.BBOX_REG_LOSS_TYPE = "smooth_l1"
retinanet.SMOOTH_L1_LOSS_BETA = 0.1
retinanet.FOCAL_LOSS_GAMMA = 2.0
retinanet.FOCAL_LOSS_ALPHA = 0.25

# ------------------------------------------------------------------------------------------------- Input
inputs = _C.INPUT = CN()
inputs.FORMAT = "BGR"  # or one of Pillow's modes: "RGB", "L", ...
inputs.MASK_FORMAT = "polygon"  # of the ground truth, or "bitmask"
inputs.RANDOM_FLIP = "horizontal"  # or "vertical", "none"
# Images are resized until the shorter side is MIN_SIZE and the longer side no more than MAX_SIZE, in pixels.
inputs.MIN_SIZE_TRAIN = (800,)
inputs.MIN_SIZE_TRAIN_SAMPLING = "choice"  # one of them; or "range": between the two
inputs.MAX_SIZE_TRAIN = 1333
inputs.MIN_SIZE_TEST = 800  # 0: no resizing
inputs.MAX_SIZE_TEST = 1333
inputs.CROP = CN()
inputs.CROP.ENABLED = False  # random crops in training
inputs.CROP.TYPE = "relative_range"  # or "relative", "absolute", "absolute_range", as RandomCrop says
inputs.CROP.SIZE = [0.9, 0.9]  # height, width: fractions for the relative types, else pixels

datasets = _C.DATASETS = CN()
datasets.TRAIN = ()  # names in DatasetCatalog; several are joined
datasets.TEST = ()
datasets.PROPOSAL_FILES_TRAIN = ()  # one a dataset, where MODEL.LOAD_PROPOSALS
datasets.PROPOSAL_FILES_TEST = ()
datasets.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2000
datasets.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1000

loader = _C.DATALOADER = CN()
loader.NUM_WORKERS = 4  # processes
loader.ASPECT_RATIO_GROUPING = True  # batches of landscape or of portrait images, never mixed: less padding
loader.SAMPLER_TRAIN = "TrainingSampler"  # or "RepeatFactorTrainingSampler"
loader.REPEAT_THRESHOLD = 0.0  # repeat images of classes that fewer images than this fraction show
loader.REPEAT_SQRT = True  # by the root of threshold / frequency, not the quotient itself
loader.FILTER_EMPTY_ANNOTATIONS = True  # leave images without annotations out of training

# ------------------------------------------------------------------------------------------------ Solver
solver = _C.SOLVER = CN()
solver.IMS_PER_BATCH = 16  # in all, over every GPU
# GPUs that this config is made for: with another number, batch, rate and schedule are rescaled; 0: never.
solver.REFERENCE_WORLD_SIZE = 0
solver.MAX_ITER = 40000
solver.BASE_LR = 0.001
solver.BASE_LR_END = 0.0  # of WarmupCosineLR
solver.LR_SCHEDULER_NAME = "WarmupMultiStepLR"  # or "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
solver.STEPS = (30000,)  # iterations at which the rate is multiplied by GAMMA
solver.GAMMA = 0.1
solver.NUM_DECAYS = 3  # of WarmupStepWithFixedGammaLR
solver.WARMUP_FACTOR = 1.0 / 1000  # the first rate, of BASE_LR
solver.WARMUP_ITERS = 1000
solver.WARMUP_METHOD = "linear"  # or "constant"
solver.RESCALE_INTERVAL = False  # stretch the schedule over what is left after the warm-up
solver.MOMENTUM = 0.9
solver.NESTEROV = False
solver.WEIGHT_DECAY = 0.0001
solver.WEIGHT_DECAY_NORM = 0.0  # of normalisation layers
solver.WEIGHT_DECAY_BIAS = None  # of biases; None: as WEIGHT_DECAY
solver.BIAS_LR_FACTOR = 1.0
solver.CHECKPOINT_PERIOD = 5000  # iterations
solver.CLIP_GRADIENTS = CN()
solver.CLIP_GRADIENTS.ENABLED = False
solver.CLIP_GRADIENTS.CLIP_TYPE = "value"  # clip each element; or "norm": of each parameter's gradient
solver.CLIP_GRADIENTS.CLIP_VALUE = 1.0
solver.CLIP_GRADIENTS.NORM_TYPE = 2.0  # the p of the norm; .inf for the largest element
solver.AMP = CN()
solver.AMP.ENABLED = False  # mixed precision in training

# --------------------------------------------------------------------------------------------------- Test
test = _C.TEST = CN()
test.EVAL_PERIOD = 0  # iterations between evaluations in training; 0: at the end alone
test.EXPECTED_RESULTS = []  # [[task, metric, value, tolerance], ...], verified after evaluation
test.DETECTIONS_PER_IMAGE = 100  # the best by score
test.KEYPOINT_OKS_SIGMAS = []  # one a keypoint; empty: COCO's
test.AUG = CN()
test.AUG.ENABLED = False  # test-time augmentation: each image at all these sizes, results merged
test.AUG.MIN_SIZES = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
test.AUG.MAX_SIZE = 4000
test.AUG.FLIP = True  # and mirrored
test.PRECISE_BN = CN()
test.PRECISE_BN.ENABLED = False  # recompute the statistics of BatchNorm before evaluation
test.PRECISE_BN.NUM_ITER = 200  # from so many batches

_C.GLOBAL = CN()  # for experiments, through `global_cfg`
_C.GLOBAL.HACK = 1.0
