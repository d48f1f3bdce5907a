"""Toy streets: a procedural panoptic data set, for demonstrations and tests that must run without a download.

    python -m seamless_d2.data.toy_streets datasets/toy_streets
    python -m seamless_d2.data.toy_streets datasets/toy_large --num-train 1000 --num-val 100 --height 256 --width 512

writes a data set in the COCO panoptic format:

    ROOT/{train,val}/000000.png ...                RGB images
    ROOT/panoptic_{train,val}/000000.png ...       segment ids as colours, id = R + 256 G + 65536 B, 0 = void
    ROOT/panoptic_{train,val}.json                 images, annotations (with segments_info), categories
    ROOT/toy_streets.json                          what was asked for; another run here must ask for the same

Each scene is a street seen by a pinhole camera and painted back to front: five stuff classes, three thing classes; day,
overcast, golden hour or evening. About 7 % of the scenes hold an `iscrowd` group of people; lamp posts and, rarely, a
skip are unlabelled (void). A seed gives the same pixels everywhere: random numbers come from `np.random.RandomState`,
whose streams NumPy has frozen, and shapes from integer polygon filling.
Training scene i has seed i, validation scene i has seed 1,000,000 + i, so the splits never share a scene.
"""

from .generation import generate_scene, write_toy_streets
from .street import CATEGORIES, Scene

__all__ = ["CATEGORIES", "Scene", "generate_scene", "write_toy_streets"]
