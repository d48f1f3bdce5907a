"""Predictions of a large job in files of many images: Parquet, or tar files in the layout of webdataset."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...io import encode_png
from ..result import PanopticResult

#: The suffixes of the files, by name of the format.
SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}


@dataclass(frozen=True)
class Prediction:
    """The prediction of one image in COCO's panoptic format.

    Attributes:
        name, image, uri: See ``remote_files.Item``.
        height, width: The size in pixels.
        png: The PNG of the ids, id = R + 256 G + 65536 B.
        segments: Dicts with id, category_id, isthing, area, bbox (x, y, width, height), iscrowd and score, which is
            None for stuff.
    """

    name: str
    image: str
    uri: str
    height: int
    width: int
    png: bytes
    segments: list[dict[str, Any]]

    @classmethod
    def from_result(cls, result: PanopticResult, name: str, image: str, uri: str) -> "Prediction":
        """Make a prediction of a result."""
        ids, content = result.to_coco()
        isthing = {segment.id: segment.isthing for segment in result.segments}
        segments = [
            {"score": None, **{k: v for k, v in s.items() if k != "track_id"}, "isthing": isthing[s["id"]]}
            for s in content["annotations"][0]["segments_info"]
        ]
        return cls(name, image, uri, *result.panoptic_seg.shape, encode_png(ids), segments)

    def to_coco(self) -> dict[str, Any]:
        """Return the json of a data set of this one image, as ``PanopticResult.to_coco`` does, without categories."""
        segments = [
            {k: s[k] for k in ("id", "area", "bbox", "score", "category_id", "iscrowd") if s[k] is not None}
            for s in self.segments
        ]
        png = f"{self.name}.png"
        return {
            "images": [{"id": 1, "file_name": self.image, "height": self.height, "width": self.width}],
            "annotations": [{"image_id": 1, "file_name": png, "segments_info": segments}],
        }


def encode_part(predictions: Sequence[Prediction], format: str) -> bytes:
    """Return the content of a file of predictions in a format of ``SUFFIXES``; equal predictions give equal bytes."""
    return _encode_parquet(predictions) if format == "parquet" else _encode_tar(predictions)


def decode_part(data: bytes, format: str) -> Iterator[Prediction]:
    """Yield the predictions of a file that ``encode_part`` has made."""
    if format == "parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches(16):
            yield from (Prediction(**row) for row in batch.to_pylist())
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        content: dict[str, Any] = {}
        for member in archive:
            body = archive.extractfile(member).read()
            if member.name.endswith(".json"):
                content = json.loads(body)
            else:
                yield Prediction(**content, png=body)


def _encode_parquet(predictions: Sequence[Prediction]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    segment = pa.struct(
        {
            "id": pa.int32(),
            "category_id": pa.int32(),
            "isthing": pa.bool_(),
            "area": pa.int64(),
            "bbox": pa.list_(pa.int32()),
            "iscrowd": pa.int8(),
            "score": pa.float64(),
        }
    )
    schema = pa.schema(
        {
            "name": pa.string(),
            "image": pa.string(),
            "uri": pa.string(),
            "height": pa.int32(),
            "width": pa.int32(),
            "png": pa.binary(),
            "segments": pa.list_(segment),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(p) for p in predictions], schema), buffer, compression="zstd")
    return buffer.getvalue()


def _encode_tar(predictions: Sequence[Prediction]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, prediction in enumerate(predictions):
            content = asdict(prediction)
            png = content.pop("png")
            # Readers of webdataset end a key at the first point, and names may have any characters.
            for suffix, body in (("json", json.dumps(content).encode()), ("png", png)):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return buffer.getvalue()
