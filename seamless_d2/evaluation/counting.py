"""Counting of the pixels that the segments of two maps share, the one pass over all pixels that PQ needs."""

import cv2
import numpy as np

# The number of pixels that are compared at a time, so that they stay in the cache of the processor.
_BLOCK_SIZE = 1 << 15


def _run_starts(*id_maps: np.ndarray) -> np.ndarray:
    """Return where runs of constant ids start.

    Args:
        id_maps: Maps of one size, see ``count_overlaps``.

    Returns:
        Ascending positions in row-major order: 0, and every pixel that differs in any map from the pixel before it. A
        few other pixels may be among them.
    """
    height, width = id_maps[0].shape[:2]
    rows = max(1, _BLOCK_SIZE // max(width, 1))
    found = []
    for top in range(0, height, rows):
        changed = None
        for id_map in id_maps:
            band = id_map[top : top + rows]
            if band.ndim == 3:
                # This is the fastest way to one number per pixel.
                band = cv2.cvtColor(band, cv2.COLOR_RGB2RGBA).view(np.int32)
            band = band.reshape(-1)
            different = band[1:] != band[:-1]
            changed = different if changed is None else np.logical_or(changed, different, out=changed)
        found += [[top * width], np.flatnonzero(changed) + (top * width + 1)]
    return np.concatenate(found)


def _ids_at(id_map: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the ids of a map at positions in row-major order."""
    if id_map.ndim == 2:
        return id_map.reshape(-1)[positions]
    pixels = id_map.reshape(-1, 3)[positions].astype(np.int32)
    return pixels[:, 0] | pixels[:, 1] << 8 | pixels[:, 2] << 16


def number_segments(ids: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """Number each id of ``ids``: 0 for id 0, k + 1 for ``segment_ids[k]``, n + 1 for any other.

    Args:
        ids: Integer ids, of any shape.
        segment_ids: (n,) distinct ids.

    Returns:
        int64 numbers in 0..n+1, of the shape of ``ids``.
    """
    n = len(segment_ids)
    other = np.where(ids == 0, 0, n + 1)
    if n == 0:
        return other
    order = np.argsort(segment_ids, kind="stable")
    ordered = segment_ids[order]
    nearest = np.searchsorted(ordered, ids).clip(max=n - 1)
    return np.where(ordered[nearest] == ids, order[nearest] + 1, other)


def count_overlaps(
    gt_map: np.ndarray, gt_ids: np.ndarray, predicted_map: np.ndarray, predicted_ids: np.ndarray
) -> np.ndarray:
    """Count the pixels of each pair of a true and a predicted segment.

    Maps are constant over long runs of pixels. Ids are looked up once per run instead of once per pixel, so that little
    more remains to do than to compare neighboring pixels of each map.

    Args:
        gt_map, predicted_map: (H, W) integer ids, or (H, W, 3) uint8 with id = R + 256 G + 65536 B.
        gt_ids: (n,) distinct ids of the true segments.
        predicted_ids: (m,) distinct ids of the predicted segments.

    Returns:
        (n + 2, m + 2) int64 numbers of pixels, true by predicted segment. Row and column 0 stand for id 0, k + 1 for
        segment k, and the last ones for all ids that are not listed.
    """
    num_pixels = gt_map.shape[0] * gt_map.shape[1]
    starts = _run_starts(gt_map, predicted_map)
    lengths = np.diff(starts, append=num_pixels)
    columns = len(predicted_ids) + 2
    pairs = number_segments(_ids_at(gt_map, starts), gt_ids) * columns
    pairs += number_segments(_ids_at(predicted_map, starts), predicted_ids)
    # Sums of whole numbers below 2^53 are exact.
    counts = np.bincount(pairs, lengths, (len(gt_ids) + 2) * columns)
    return counts.astype(np.int64).reshape(-1, columns)
