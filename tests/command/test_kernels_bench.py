"""The profile of an iteration: every kernel has a kind, and the shares are those of all time."""

from types import SimpleNamespace

import pytest

from grpo_guard.command.benches import kernels
from grpo_guard.command.benches.memory import TINY

NAMES = {
    "triton_poi_fused_native_layer_norm_mul_0": "compiled",
    "## Call CompiledFxGraph f3uuzhdu3ipg ##": "compiled",
    "void pytorch_flash::flash_fwd_kernel<...>": "attention",
    "fmha_cutlassF_bf16_aligned_64x64_rf_sm80": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32": "convolutions",
    "aten::mkldnn_convolution": "convolutions",
    "nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NTN": "matrix products",
    "aten::addmm": "matrix products",
    "aten::mm": "matrix products",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "exchanges",
    "void at::native::multi_tensor_apply_kernel<...>": "optimizer",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>": "norms and sums",
    "aten::native_layer_norm": "norms and sums",
    "aten::sum": "norms and sums",
    "Memcpy DtoH (Device -> Pinned)": "copies",
    "aten::copy_": "copies",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>": "elementwise",
    "aten::mul_": "elementwise",
    "aten::addcmul_": "elementwise",
    "aten::item": "the rest",
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_a_kernel_has_the_kind_that_its_name_tells(name, kind):
    assert kernels.name_kind(name) == kind


def make_event(key, count, cpu, device):
    return SimpleNamespace(
        key=key, count=count, self_cpu_time_total=cpu, self_device_time_total=device
    )


EVENTS = [
    make_event("aten::mul", 4, cpu=1e6, device=0),
    make_event("aten::mm", 2, cpu=3e6, device=0),
    make_event("void elementwise_kernel", 4, cpu=0, device=8e6),
    make_event("sgemm", 2, cpu=0, device=2e6),
]


@pytest.mark.parametrize(
    ("on_gpu", "rows"),
    [
        (False, [("matrix products", "3", "75.0%", "2"), ("elementwise", "1", "25.0%", "4")]),
        (True, [("elementwise", "8", "80.0%", "4"), ("matrix products", "2", "20.0%", "2")]),
    ],
)
def test_time_is_that_of_the_device(on_gpu, rows):
    """On a GPU, the operations that start kernels take none of its time."""
    table = kernels.make_kind_table(kernels.read_kernels(EVENTS, on_gpu=on_gpu))
    assert list(zip(*(column.cells for column in table.columns), strict=True)) == rows


def test_an_iteration_is_profiled():
    """All kinds that a tiny run has are found, and the longest kernels come first."""
    profiled = kernels.profile_iteration([*TINY, "strategy.device=cpu"])
    assert [k.seconds for k in profiled] == sorted((k.seconds for k in profiled), reverse=True)
    kinds = {kernels.name_kind(kernel.name) for kernel in profiled}
    assert kinds > {"matrix products", "norms and sums", "elementwise", "attention", "convolutions"}
    table = kernels.make_kernel_table(profiled)
    assert table.row_count == kernels.SHOWN
    shares = kernels.make_kind_table(profiled).columns[2].cells
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=0.5)
