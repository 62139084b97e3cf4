"""Drop the GPU images of all architectures but one from shared objects below a folder, in place.

usage: strip_fatbin.py FOLDER ARCH        (ARCH as the image header has it: 90 for sm_90 and sm_90a)

Inside each fatbin region the kept images move to its front, the region's size shrinks to them, and
the freed bytes become zeros, which compress to nothing; the files keep their size and layout. The
result runs on ARCH only.
"""

import collections
import mmap
import pathlib
import struct
import sys

MAGIC = struct.pack("<I", 0xBA55ED50)
"""Start of a fatbin region: magic u32, version u16, size of the header u16, size u64."""
_REGION_HEADER, _IMAGE_HEADER, _ARCH_AT = 16, 48, 28
_PTX, _ELF = 1, 2


def strip(path: pathlib.Path, arch: int, sizes: collections.Counter[int]) -> None:
    """Strips one file, and adds the bytes of its images to ``sizes``, by architecture."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        at = 0
        while (at := view.find(MAGIC, at)) != -1:
            _, _, header, size = struct.unpack_from("<IHHQ", view, at)
            end = at + header + size
            if header != _REGION_HEADER or end > len(view):
                at += len(MAGIC)
                continue
            _strip_region(view, at, end, arch, sizes)
            at = end
        view.flush()


def _strip_region(
    view: mmap.mmap, at: int, end: int, arch: int, sizes: collections.Counter[int]
) -> None:
    """Moves the images that stay to the region's front, and zeroes what is behind them."""
    first = image = keep_end = at + _REGION_HEADER
    while image + 64 <= end:
        kind, _, header, size = struct.unpack_from("<HHIQ", view, image)
        (of_arch,) = struct.unpack_from("<I", view, image + _ARCH_AT)
        length = header + size
        if kind not in (_PTX, _ELF) or header < _IMAGE_HEADER or image + length > end:
            break
        sizes[of_arch] += size
        if of_arch == arch:
            view.move(keep_end, image, length)
            keep_end += length
        image += length
    if image > keep_end:
        view[keep_end:image] = bytes(image - keep_end)
        struct.pack_into("<Q", view, at + 8, keep_end - first)


def main() -> None:
    """Strips all shared objects below a folder, and prints what there was of each."""
    sizes: collections.Counter[int] = collections.Counter()
    for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.so")):
        strip(path, int(sys.argv[2]), sizes)
    print({f"sm_{arch}": f"{size >> 20} MiB" for arch, size in sorted(sizes.items())})


if __name__ == "__main__":
    main()
