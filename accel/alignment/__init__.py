"""Cross-modal alignment: any number of modalities, exact losses in linear memory."""

from accel.alignment.aligner import Aligner as Aligner
from accel.alignment.caching.aligner import CachedAligner as CachedAligner
from accel.alignment.caching.aligner import cached as cached
from accel.alignment.evaluation.collapse import CollapseError as CollapseError
from accel.alignment.evaluation.collapse import CollapseLimits as CollapseLimits
from accel.alignment.evaluation.health import Health as Health
from accel.alignment.evaluation.health import alignment_distance as alignment_distance
from accel.alignment.evaluation.health import effective_rank as effective_rank
from accel.alignment.evaluation.health import mean_cosine as mean_cosine
from accel.alignment.evaluation.health import measure_health as measure_health
from accel.alignment.evaluation.health import modality_gap as modality_gap
from accel.alignment.evaluation.health import modality_health as modality_health
from accel.alignment.evaluation.health import uniformity as uniformity
from accel.alignment.evaluation.monitor import CollapseMonitor as CollapseMonitor
from accel.alignment.evaluation.page import TrainingReport as TrainingReport
from accel.alignment.evaluation.page import write_page as write_page
from accel.alignment.evaluation.projection_map import principal_map as principal_map
from accel.alignment.evaluation.ranking import nearest as nearest
from accel.alignment.evaluation.retrieval import Retrieval as Retrieval
from accel.alignment.evaluation.retrieval import retrieve as retrieve
from accel.alignment.evaluation.retrieval import retrieve_all_pairs as retrieve_all_pairs
from accel.alignment.evaluation.retrieval import retrieve_both_ways as retrieve_both_ways
from accel.alignment.evaluation.zero_shot import ZeroShot as ZeroShot
from accel.alignment.evaluation.zero_shot import class_prototypes as class_prototypes
from accel.alignment.evaluation.zero_shot import zero_shot_accuracy as zero_shot_accuracy
from accel.alignment.loss import contrastive_loss as contrastive_loss
from accel.alignment.normalization import normalized as normalized
from accel.alignment.onnx_export import export_onnx as export_onnx
from accel.alignment.output import AlignmentOutput as AlignmentOutput
from accel.alignment.pairing import aligned_pairs as aligned_pairs
from accel.alignment.pairing import grouped as grouped
from accel.alignment.pairing import guided as guided
from accel.alignment.pairing import identities as identities
from accel.alignment.pairing import matched_pairs as matched_pairs
from accel.alignment.pairing import with_negatives as with_negatives
from accel.alignment.projection import LinearProjection as LinearProjection
from accel.alignment.projection import MlpProjection as MlpProjection
from accel.alignment.ranks.global_batch import first_sample as first_sample
from accel.alignment.temperature import Bias as Bias
from accel.alignment.temperature import Temperature as Temperature
from accel.alignment.transfer.decay import CosineDecay as CosineDecay
from accel.alignment.transfer.distillation import distillation_loss as distillation_loss
from accel.alignment.transfer.locking import locked as locked
from accel.alignment.transfer.locking import unlock as unlock
from accel.alignment.transfer.relational import relational_loss as relational_loss
from accel.alignment.transfer.teacher import EMATeacher as EMATeacher
from accel_kernels.contrastive_loss.pairing import ABSENT as ABSENT
from accel_kernels.contrastive_loss.pairing import Guide as Guide
from accel_kernels.contrastive_loss.pairing import Pairing as Pairing

__all__ = [
    "ABSENT",
    "Aligner",
    "AlignmentOutput",
    "Bias",
    "CachedAligner",
    "CollapseError",
    "CollapseLimits",
    "CollapseMonitor",
    "CosineDecay",
    "EMATeacher",
    "Guide",
    "Health",
    "LinearProjection",
    "MlpProjection",
    "Pairing",
    "Retrieval",
    "Temperature",
    "TrainingReport",
    "ZeroShot",
    "aligned_pairs",
    "alignment_distance",
    "cached",
    "class_prototypes",
    "contrastive_loss",
    "distillation_loss",
    "effective_rank",
    "export_onnx",
    "first_sample",
    "grouped",
    "guided",
    "identities",
    "locked",
    "matched_pairs",
    "mean_cosine",
    "measure_health",
    "modality_gap",
    "modality_health",
    "nearest",
    "normalized",
    "principal_map",
    "relational_loss",
    "retrieve",
    "retrieve_all_pairs",
    "retrieve_both_ways",
    "uniformity",
    "unlock",
    "with_negatives",
    "write_page",
    "zero_shot_accuracy",
]
