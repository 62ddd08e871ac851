"""The kernels that gather what lies under a convolution's filters; see ``fedsec.mpc.patches``.

Runs of neighbouring values are handled in one innermost loop.
"""

from __future__ import annotations

from fedsec.mpc.patches import Numbers
from fedsec.ring import RingArray
from fedsec.ring._compiled import jit, matmul


@jit
def sum_boxes(image: RingArray, sizes: Numbers, summed: RingArray) -> None:
    """Put zeros around an image [H, W * C] and write the sum of the box at every place."""
    channels, top, left, box_rows, box_columns, box_down, box_across = sizes[:7]
    height, width = image.shape[0], image.shape[1] // channels
    summed[:] = 0
    for by in range(box_rows):
        for bx in range(box_columns):
            # Columns of the sums for which this value of the box lies inside of the image.
            shift = bx * box_across - left
            first, last = max(0, -shift), min(summed.shape[1] // channels, width - shift)
            for y in range(summed.shape[0]):
                source = y + by * box_down - top
                if 0 <= source < height and first < last:
                    add = image[source, (first + shift) * channels : (last + shift) * channels]
                    total = summed[y, first * channels : last * channels]
                    for e in range(len(total)):
                        total[e] += add[e]


@jit
def gather(images: RingArray, sizes: Numbers, summed: RingArray, rows: RingArray) -> None:
    """Write the patches of images [N, H, W * C] as rows; ``summed`` is room for the sums of one."""
    channels = sizes[0]
    places_down, places_across, high, wide, down, across, step_down, step_across = sizes[7:]
    run = wide * channels if step_across == 1 else channels
    runs = 1 if step_across == 1 else wide
    for i in range(images.shape[0]):
        sum_boxes(images[i], sizes, summed)
        for y in range(places_down):
            for x in range(places_across):
                row = rows[(i * places_down + y) * places_across + x]
                for patch in range(high * runs):
                    line = summed[y * down + patch // runs * step_down]
                    start = (x * across + patch % runs * step_across) * channels
                    for e in range(run):
                        row[patch * run + e] = line[start + e]


@jit
def convolve(
    images: RingArray,
    sizes: Numbers,
    kernel: RingArray,
    scratch: tuple[RingArray, RingArray],
    product: RingArray,
) -> None:
    """Multiply the patches of images by a kernel [h * w * C, F]; scratch is as ``gather`` needs it."""
    summed, rows = scratch
    gather(images, sizes, summed, rows)
    matmul(rows, kernel, product)
