"""Devices that runs are planned for: peaks from their makers, and the shares that are reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What a device can do."""

    memory: float  # bytes
    half_flops: float  # FLOP/s of dense bfloat16 products
    single_flops: float  # FLOP/s of float32 products, without TF32
    bandwidth: float  # bytes/s of its memory
    training_share: float = 0.4  # of a pass's time, what products and memory traffic alone take
    decoding_share: float = 0.5  # the same of a decoding step's, its calls aside
    layer_seconds: float = 0.9e-3  # of a layer of a decoding step beside products: host, launches


GIB, TERA = 2**30, 1e12

# The shares are guesses from published model FLOPs utilisation (.3 to .5 of dense training with
# FSDP); 25 ms a step of 28 layers are those of training/config.py's PATIENCE_SECONDS. Nothing was
# run on them.
DEVICES = {
    # NVIDIA H100 Tensor Core GPU datasheet, SXM: 1,979 TFLOPS bfloat16 with sparsity, half of it
    # dense; 67 TFLOPS float32; 80 GB, 3.35 TB/s.
    "h100": Device(80 * GIB, 989 * TERA, 67 * TERA, 3.35 * TERA),
    # NVIDIA A100 80GB datasheet, SXM: 312 TFLOPS bfloat16, 19.5 float32, 2,039 GB/s.
    "a100-80": Device(80 * GIB, 312 * TERA, 19.5 * TERA, 2.039 * TERA),
    # The same for 40 GB: 1,555 GB/s.
    "a100-40": Device(40 * GIB, 312 * TERA, 19.5 * TERA, 1.555 * TERA),
    # NVIDIA L40S datasheet: 362 TFLOPS bfloat16 dense, 91.6 float32, 864 GB/s; 48 GB, of which
    # error correction leaves 45 GiB (nvidia-smi: 46,068 MiB).
    "l40s": Device(45 * GIB, 362 * TERA, 91.6 * TERA, 0.864 * TERA),
    # NVIDIA Ada GPU architecture whitepaper, RTX 4090: 165.2 TFLOPS bfloat16 with float32 sums,
    # 82.6 float32, 24 GB, 1,008 GB/s.
    "4090": Device(24 * GIB, 165.2 * TERA, 82.6 * TERA, 1.008 * TERA),
    # One core with AVX-512 at 2.5 GHz and two units of 16 multiply-adds: 160 GFLOPS float32; of
    # bfloat16 no more without AMX. 10 GB/s a core. `softgrpo plan --calibrate` measures yours.
    "cpu": Device(16 * GIB, 0.16 * TERA, 0.16 * TERA, 0.010 * TERA, 0.5, 0.7, 1e-3),
}


def gib(num_bytes: float) -> str:
    """Bytes in GiB, as plans and runs show them."""
    return f"{num_bytes / GIB:.2f}"
