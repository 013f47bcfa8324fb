# ruff: noqa: E501, E741
"""One row per module: its name, how to build it, the input's shape, and the registry names its lowering uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Make = Callable[[], nn.Module]


class Call(nn.Module):
    """A function as a module; ``tensors`` become buffers and are passed after the input."""

    def __init__(self, function: Callable[..., Tensor], *tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for place, tensor in enumerate(tensors):
            self.register_buffer(f"tensor{place}", tensor)
        self.count = len(tensors)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, f"tensor{i}") for i in range(self.count)))


@dataclass(frozen=True)
class Case:
    """``kind`` is linear, selection or gain; ``covers`` are names in ``supported_ops()``."""

    name: str
    make: Make
    shape: tuple[int, ...]
    covers: str = ""
    kind: str = "linear"
    constant: dict[float, float] | None = None  # known truth per norm


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] = x[:, 2:3]
    return y


def call(function: Callable[..., Tensor], *tensors: Tensor) -> Make:
    return lambda: Call(function, *tensors)


def numbers(*shape: int) -> Tensor:
    """Fixed pseudo-random constants."""
    generator = torch.Generator().manual_seed(sum(shape) + 17 * len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def whole(*values: int) -> Tensor:
    return torch.tensor(values)


def bn(kind: type[nn.Module], channels: int) -> Make:
    def make() -> nn.Module:
        layer = kind(channels)
        layer.running_var.uniform_(1e-3, 2.0)
        layer.running_mean.normal_()
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        return layer

    return make


V, S, I, T, C = (4,), (4, 6), (2, 5, 6), (4, 5, 5), (2, 3, 4, 3)
A = torch.ops.aten

LINEAR = [
    Case("linear", lambda: nn.Linear(6, 3), S, "linear"),
    Case("linear without bias", lambda: nn.Linear(4, 7, bias=False), V, "linear"),
    Case("matmul right", call(lambda x, w: x @ w, numbers(6, 3)), S, "matmul"),
    Case("matmul left", call(lambda x, w: w @ x, numbers(3, 4)), S, "matmul"),
    Case("matmul broadcast", call(lambda x, w: (w @ x.view(6, 4)).view(1, -1), numbers(2, 3, 5, 6)), (6, 4), "matmul"),
    Case("mm", call(lambda x, w: torch.mm(x, w), numbers(4, 3)), V, "mm"),
    Case("bmm", call(lambda x, w: torch.bmm(x, w), numbers(1, 6, 2)), S, "bmm"),
    Case("mv", call(lambda x, w: torch.mv(x, w)[:, None], numbers(4)), V, "mv"),
    Case("dot", call(lambda x, w: torch.dot(x.view(4), w)[None], numbers(4)), V, "dot"),
    Case("vdot", call(lambda x, w: torch.vdot(w, x.view(4))[None], numbers(4)), V, "vdot"),
    Case("outer", call(lambda x, w: torch.outer(x.view(4), w)[None], numbers(3)), V, "outer"),
    Case("addmm", call(lambda x, b, w: torch.addmm(b, x, w, beta=2, alpha=-3), numbers(3), numbers(4, 3)), V, "addmm"),
    Case("baddbmm", call(lambda x, b, w: torch.baddbmm(b, x, w, beta=2, alpha=-3), numbers(1, 4, 3), numbers(1, 6, 3)), S, "baddbmm"),
    Case("bilinear first", call(lambda x, b, w: F.bilinear(x, b, w), numbers(1, 3), numbers(2, 4, 3)), V, "bilinear"),
    Case("bilinear second", call(lambda x, b, w: F.bilinear(b, x, w), numbers(1, 3), numbers(2, 3, 4)), V, "bilinear"),
    Case("einsum", call(lambda x, w: torch.einsum("bij,jk->bik", x, w), numbers(6, 3)), S, "einsum"),
    Case("einsum sums all", call(lambda x, w: torch.einsum("bij,k->bk", x, w), numbers(3)), S, "einsum"),
    Case("conv1d", lambda: nn.Conv1d(4, 3, 3, stride=2, padding=1), S, "conv1d"),
    Case("conv1d same", lambda: nn.Conv1d(4, 4, 4, padding="same", groups=2), S, "conv1d"),
    Case("conv2d", lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1, groups=2), I, "conv2d"),
    Case("conv2d dilated", lambda: nn.Conv2d(2, 3, 2, padding=2, dilation=2), I, "conv2d"),
    Case("conv2d circular", lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), I, "conv2d pad"),
    Case("conv2d reflect", lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), I, "conv2d pad"),
    Case("conv1d replicate", lambda: nn.Conv1d(4, 3, 3, padding=2, padding_mode="replicate"), S, "conv1d pad"),
    Case("conv3d", lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), C, "conv3d"),
    Case("conv_transpose1d", lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1), S, "conv_transpose1d"),
    Case("conv_transpose2d", lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, groups=2), I, "conv_transpose2d"),
    Case("conv_transpose3d", lambda: nn.ConvTranspose3d(2, 3, 2, dilation=(1, 2, 1)), C, "conv_transpose3d"),
    Case("convolution", call(lambda x, w: A.convolution(x, w, None, [2], [1], [1], False, [0], 1), numbers(3, 4, 3)), S, "convolution"),
    Case("convolution transposed", call(lambda x, w: A.convolution(x, w, None, [2], [1], [1], True, [1], 1), numbers(4, 3, 3)), S, "convolution"),
    Case("add", call(lambda x, b: x + b + x * 2, numbers(4)), V, "add mul"),
    Case("add alpha", call(lambda x: torch.add(x, x.flip(1), alpha=-3)), V, "add"),
    Case("add broadcast", call(lambda x: x[:, :1] + x), S, "add"),
    Case("sub", call(lambda x, b: (b - x) - 2 * x.roll(1, 1), numbers(4)), V, "sub"),
    Case("sub cancels", call(lambda x: x - x), V, "sub", constant={1.0: 0.0, 2.0: 0.0, math.inf: 0.0}),
    Case("rsub", call(lambda x: torch.rsub(x, 3.0, alpha=2)), V, "rsub"),
    Case("neg", call(lambda x: -x), V, "neg"),
    Case("mul tensor", call(lambda x, w: x[:, :, None] * w, numbers(4, 5)), V, "mul"),
    Case("mul one entry", call(lambda x, w: x * w, numbers(1, 1)), V, "mul"),
    Case("div", call(lambda x, w: x / w / 3 / 4, numbers(6)), S, "div.Tensor div.Scalar true_divide"),
    Case("view", call(lambda x: x.view(1, 3, 8).reshape(1, -1)), S, "view reshape _unsafe_view _reshape_alias"),
    Case("flatten", lambda: nn.Flatten(), S, "flatten"),
    Case("unflatten", lambda: nn.Unflatten(1, (2, 2)), S, "unflatten"),
    Case("squeeze", call(lambda x: x.unsqueeze(2).squeeze(2).unsqueeze(1).squeeze((1,))), S, "squeeze squeeze.dim squeeze.dims unsqueeze"),
    Case("permute", call(lambda x: x.permute(0, 2, 1)), S, "permute"),
    Case("transpose", call(lambda x: x.transpose(1, 2)), S, "transpose swapaxes mT"),
    Case("numpy_T", call(lambda x: torch.ops.aten.numpy_T(x).permute(2, 1, 0)), S, "numpy_T"),
    Case("movedim", call(lambda x: x.movedim(1, 3)), I, "movedim moveaxis"),
    Case("flip", call(lambda x: x.flip((1, 2))), S, "flip"),
    Case("roll", call(lambda x: x.roll((1, 2), (1, 2))), S, "roll"),
    Case("rot90", call(lambda x: x.rot90(1, (2, 3))), I, "rot90"),
    Case("pixel_shuffle", lambda: nn.PixelShuffle(2), T, "pixel_shuffle"),
    Case("pixel_unshuffle", lambda: nn.PixelUnshuffle(2), (2, 4, 6), "pixel_unshuffle"),
    Case("channel_shuffle", lambda: nn.ChannelShuffle(2), T, "channel_shuffle"),
    Case("identity", call(lambda x: x.clone().contiguous()), S, "clone alias contiguous detach lift_fresh_copy"),
    Case("dropout", lambda: nn.Sequential(nn.Dropout(), nn.AlphaDropout(), nn.Dropout1d()), S, "dropout feature_dropout alpha_dropout feature_alpha_dropout"),
    Case("select", call(lambda x: x.select(1, -1)), S, "select"),
    Case("narrow", call(lambda x: x.narrow(1, 1, 2)), S, "narrow"),
    Case("diagonal", call(lambda x: x.diagonal(1, 1, 2)), S, "diagonal"),
    Case("triangles", call(lambda x: x.tril(1) + 2 * x.triu()), S, "tril triu"),
    Case("expand", call(lambda x: x[:, None].expand(1, 40, 4)), V, "expand"),
    Case("repeat", call(lambda x: x.repeat(1, 30)), V, "repeat"),
    Case("tile", call(lambda x: x.tile(1, 20)), V, "tile"),
    Case("repeat_interleave", call(lambda x: x.repeat_interleave(3, 1)), S, "repeat_interleave.self_int"),
    Case("nll_loss", call(lambda x, y: F.nll_loss(x, y, reduction="none")[:, None], whole(2)), V, "nll_loss"),
    Case("nll_loss2d", call(lambda x, y, w: F.nll_loss(x, y, w, reduction="none").flatten(1), whole(2, 1, 0, 3, 1, 2).view(1, 2, 3), numbers(4).abs()), (4, 2, 3), "nll_loss2d"),
    Case("index_select", call(lambda x, i: x.index_select(1, i), whole(0, 0, 3, 0)), S, "index_select"),
    Case("slice", call(lambda x: x[:, 1:-1, ::2]), S, "slice"),
    Case("index", call(lambda x, i: x[:, i], whole(0, 0, 1, 0, 3, 0, 0, 0, 0)), V, "index"),
    Case("t", call(lambda x: x.view(1, 4).t().t()), V, "t"),
    Case("index pairs", call(lambda x, i, j: x[:, i, j], whole(0, 1, 1), whole(5, 2, 2)), S, "index"),
    Case("gather", call(lambda x, i: x.view(1, 4).gather(1, i), whole(3, 3, 1, 3)[None]), V, "gather"),
    Case("unfold tensor", call(lambda x: x.unfold(2, 3, 1)), S, "unfold"),
    Case("unfold", lambda: nn.Unfold(2, padding=1, stride=1), I, "im2col"),
    Case("fold", lambda: nn.Fold((4, 4), 2), (8, 9), "col2im"),
    Case("cat", call(lambda x, c: torch.cat([x, c, 2 * x], 1), numbers(1, 3)), V, "cat concat"),
    Case("stack", call(lambda x: torch.stack([x, x.flip(1)], 1)), V, "stack"),
    Case("split", call(lambda x: sum(p.sum(1) for p in x.split((1, 3), 1))), S, "split split_with_sizes unsafe_split"),
    Case("chunk", call(lambda x: A.chunk(x, 2, 1)[1]), S, "chunk"),
    Case("tensor_split", call(lambda x: torch.tensor_split(x, 3, 2)[2]), S, "tensor_split"),
    Case("unbind", call(lambda x: x.unbind(1)[2]), S, "unbind"),
    Case("cumsum", call(lambda x: x.cumsum(1)), S, "cumsum"),
    Case("sum", call(lambda x: x.sum((1, 2), keepdim=True)), I, "sum"),
    Case("mean", call(lambda x: x.mean(2)), S, "mean"),
    Case("to", call(lambda x: x.to(torch.float64).type_as(x)), V, "to _to_copy type_as _assert_tensor_metadata"),
    Case("slice_scatter", call(lambda x: A.slice_scatter(x, 2 * x[:, :2], 1, 1, 3)), S, "slice_scatter"),
    Case("copy", call(assigned), S, "copy slice_scatter"),
    Case("select_scatter", call(lambda x, c: A.select_scatter(x, c, 1, 1), numbers(1, 6)), S, "select_scatter"),
    Case("index_put", call(lambda x, i: A.index_put(x, [None, i], x[:, :1] * 3), whole(0, 3)), S, "index_put"),
    Case("index_put adds", call(lambda x, i: A.index_put(x, [None, i], x[:, :3], True), whole(2, 2, 1)), S, "index_put"),
    Case("scatter_add", call(lambda x, i: x.scatter_add(1, i.expand(len(x), -1, -1), 2 * x[:, 1:]), whole(1, 1, 0).view(1, 3, 1).expand(1, 3, 6)), S, "scatter_add"),
    Case("scatter", call(lambda x, i: x.scatter(1, i.expand(len(x), -1, -1), 2 * x[:, 2:]), whole(3, 0).view(1, 2, 1).expand(1, 2, 6)), S, "scatter.src"),
    Case("scatter a number", call(lambda x, i: x.scatter(1, i.expand(len(x), -1, -1), 7.0), whole(3, 0).view(1, 2, 1).expand(1, 2, 6)), S, "scatter.value"),
    Case("scatter_reduce", call(lambda x, i: x.scatter_reduce(1, i.expand(len(x), -1, -1), 2 * x[:, 1:], "mean"), whole(1, 1, 0).view(1, 3, 1).expand(1, 3, 6)), S, "scatter_reduce"),
    Case("scatter_reduce of others", call(lambda x, i: x.scatter_reduce(1, i.expand(len(x), -1, -1), x, "mean", include_self=False), whole(1, 1, 0, 1).view(1, 4, 1).expand(1, 4, 6)), S, "scatter_reduce"),
    Case("imag", call(lambda x: torch.fft.ifft(x, dim=2).imag), S, "_neg_view"),
    Case("pad", lambda: nn.ConstantPad2d((1, 2, -1, 0), 3.0), I, "pad"),
    Case("constant_pad_nd", call(lambda x: A.constant_pad_nd(x, [1, 2], 0.5)), S, "constant_pad_nd"),
    Case("pad circular", lambda: nn.CircularPad2d((2, 1, 3, 2)), I, "pad"),
    Case("reflection_pad1d", call(lambda x: A.reflection_pad1d(x, [2, 1])), S, "reflection_pad1d"),
    Case("reflection_pad2d", call(lambda x: A.reflection_pad2d(x, [2, 1, 1, 1])), I, "reflection_pad2d"),
    Case("reflection_pad3d", call(lambda x: A.reflection_pad3d(x, [1] * 6)), C, "reflection_pad3d"),
    Case("replication_pad1d", call(lambda x: A.replication_pad1d(x, [3, 1])), S, "replication_pad1d"),
    Case("replication_pad2d", call(lambda x: A.replication_pad2d(x, [2, 1, 1, 1])), I, "replication_pad2d"),
    Case("replication_pad3d", call(lambda x: A.replication_pad3d(x, [1, 2, 1, 1, 1, 1])), C, "replication_pad3d"),
    Case("batch_norm1d", bn(nn.BatchNorm1d, 4), V, "_native_batch_norm_legit_no_training batch_norm"),
    Case("batch_norm2d", bn(nn.BatchNorm2d, 2), I, "_native_batch_norm_legit_no_training"),
    Case("batch_norm3d", bn(nn.BatchNorm3d, 2), C, "_native_batch_norm_legit_no_training"),
    Case("instance_norm running", lambda: nn.InstanceNorm2d(2, affine=True, track_running_stats=True), I, "instance_norm"),
    Case("avg_pool1d", lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True), S, "avg_pool1d"),
    Case("avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), I, "avg_pool2d"),
    Case("avg_pool2d divisor", lambda: nn.AvgPool2d(2, 1, divisor_override=3), I, "avg_pool2d"),
    Case("avg_pool3d", lambda: nn.AvgPool3d(2, 1, 1), C, "avg_pool3d"),
    Case("adaptive_avg_pool1d", lambda: nn.AdaptiveAvgPool1d(4), S, "adaptive_avg_pool1d"),
    Case("adaptive_avg_pool2d", lambda: nn.AdaptiveAvgPool2d((3, 7)), I, "adaptive_avg_pool2d"),
    Case("global average", lambda: nn.AdaptiveAvgPool2d(1), I, "_adaptive_avg_pool2d _adaptive_avg_pool1d _adaptive_avg_pool3d"),
    Case("adaptive_avg_pool3d", lambda: nn.AdaptiveAvgPool3d(2), C, "adaptive_avg_pool3d"),
    Case("nearest1d", lambda: nn.Upsample(scale_factor=2.5), S, "upsample_nearest1d"),
    Case("nearest2d", lambda: nn.Upsample(size=(7, 4)), I, "upsample_nearest2d"),
    Case("nearest3d", lambda: nn.Upsample(scale_factor=2), C, "upsample_nearest3d"),
    Case("nearest-exact1d", lambda: nn.Upsample(scale_factor=0.7, mode="nearest-exact"), S, "_upsample_nearest_exact1d"),
    Case("nearest-exact2d", lambda: nn.Upsample(size=(7, 4), mode="nearest-exact"), I, "_upsample_nearest_exact2d"),
    Case("nearest-exact3d", lambda: nn.Upsample(scale_factor=1.5, mode="nearest-exact"), C, "_upsample_nearest_exact3d"),
    Case("linear1d", lambda: nn.Upsample(scale_factor=1.7, mode="linear"), S, "upsample_linear1d"),
    Case("bilinear2d", lambda: nn.Upsample(scale_factor=(1.3, 2), mode="bilinear"), I, "upsample_bilinear2d"),
    Case("bilinear2d aligned", lambda: nn.Upsample(size=(9, 4), mode="bilinear", align_corners=True), I, "upsample_bilinear2d"),
    Case("trilinear3d", lambda: nn.Upsample(size=(2, 5, 3), mode="trilinear"), C, "upsample_trilinear3d"),
    Case("bicubic2d", lambda: nn.Upsample(scale_factor=2, mode="bicubic"), I, "upsample_bicubic2d"),
    Case("bicubic2d aligned", lambda: nn.Upsample(size=(3, 9), mode="bicubic", align_corners=True), I, "upsample_bicubic2d"),
]  # fmt: skip

ONE = {1.0: 1.0, 2.0: 1.0, math.inf: 1.0}


def overlap(m: int) -> dict[float, float]:
    return {1.0: float(m), 2.0: math.sqrt(m), math.inf: 1.0}


SELECTION = [
    Case("max_pool1d", lambda: nn.MaxPool1d(3, 1, 1), S, "max_pool1d", "selection", overlap(3)),
    Case("max_pool2d", lambda: nn.MaxPool2d(2), I, "max_pool2d", "selection", overlap(1)),
    Case("max_pool2d k3 s2", lambda: nn.MaxPool2d(3, 2), (1, 7, 7), "max_pool2d", "selection", overlap(4)),
    Case("max_pool2d dilated", lambda: nn.MaxPool2d(3, 2, 1, dilation=2), (1, 13, 13), "max_pool2d", "selection", overlap(9)),
    Case("max_pool2d ceil", lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), I, "max_pool2d", "selection", overlap(4)),
    Case("max_pool3d", lambda: nn.MaxPool3d(2, 1), C, "max_pool3d", "selection", overlap(8)),
    Case("max_pool1d indices", call(lambda x: F.max_pool1d(x, 2, 1, return_indices=True)[0]), S, "max_pool1d_with_indices", "selection", overlap(2)),
    Case("max_pool2d indices", call(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), I, "max_pool2d_with_indices", "selection", overlap(1)),
    Case("max_pool3d indices", call(lambda x: F.max_pool3d(x, 2, return_indices=True)[0]), C, "max_pool3d_with_indices", "selection", overlap(1)),
    Case("adaptive_max_pool1d", lambda: nn.AdaptiveMaxPool1d(4), S, "adaptive_max_pool1d", "selection", overlap(2)),
    Case("adaptive_max_pool2d", lambda: nn.AdaptiveMaxPool2d((3, 3)), I, "adaptive_max_pool2d", "selection", overlap(2)),
    Case("adaptive_max_pool3d", lambda: nn.AdaptiveMaxPool3d(2), C, "adaptive_max_pool3d", "selection", overlap(4)),
    Case("max.dim", call(lambda x: x.max(1)[0]), S, "max.dim", "selection", ONE),
    Case("min.dim", call(lambda x: x.min(2, keepdim=True)[0]), S, "min.dim", "selection", ONE),
    Case("amax", call(lambda x: x.amax((1, 3))), I, "amax", "selection", ONE),
    Case("amin", call(lambda x: x.amin(1, keepdim=True)), S, "amin", "selection", ONE),
    Case("aminmax", call(lambda x: torch.aminmax(x, dim=1).max), S, "aminmax", "selection", ONE),
    Case("max.default", call(lambda x: torch.stack([row.max() for row in x])), V, "max.default", "selection", ONE),
    Case("min.default", call(lambda x: torch.stack([row.min() for row in x])), V, "min.default", "selection", ONE),
    Case("maximum", call(lambda x: torch.maximum(x, x.roll(1, 1))), V, "maximum max.other", "selection", overlap(2)),
    Case("max.other", call(lambda x: torch.max(x[:, :1], x[:, 1:])), V, "max.other fmax", "selection"),
    Case("minimum", call(lambda x: torch.minimum(x[:, :2], x[:, 2:])), V, "minimum min.other", "selection", ONE),
    Case("min.other", call(lambda x: torch.fmin(torch.min(x, x.flip(1)), 2 * x)), V, "min.other fmin", "selection"),
    Case("max constant", call(lambda x, c: torch.maximum(c, x), numbers(4)), V, "maximum", "selection", ONE),
    Case("min constant", call(lambda x, c: torch.minimum(x[:, None], c), numbers(3, 1)), V, "minimum", "selection", overlap(3)),
    Case("sort", call(lambda x: x.sort(1)[0]), S, "sort", "selection", ONE),
    Case("sort down", call(lambda x: x.sort(dim=2, descending=True, stable=True)[0]), S, "sort.stable", "selection", ONE),
    Case("msort", call(lambda x: torch.msort(x.transpose(0, 1)).transpose(0, 1)), S, "msort", "selection", ONE),
    Case("topk", call(lambda x: x.topk(2, 1)[0]), S, "topk", "selection", ONE),
    Case("smallest", call(lambda x: x.topk(3, 2, largest=False)[0]), S, "topk", "selection", ONE),
    Case("kthvalue", call(lambda x: x.kthvalue(2, 1)[0]), S, "kthvalue", "selection", ONE),
    Case("median", call(lambda x: x.median(2, keepdim=True)[0]), S, "median.dim", "selection", ONE),
    Case("group sort", call(lambda x: x.view(1, 4, 2, 3).sort(-1)[0].flatten(1)), S, "sort", "selection", ONE),
    Case("MaxMin by halves", call(lambda x: torch.cat([torch.max(*x.chunk(2, 1)), torch.min(*x.chunk(2, 1))], 1)), V, "max.other", "selection", ONE),
    Case("MaxMin by pairs", call(lambda x: torch.stack([x.view(1, 2, 2).max(2)[0], x.view(1, 2, 2).min(2)[0]], 2)), V, "max.dim", "selection", ONE),
    Case("scatter_reduce amax", call(lambda x, i: x.scatter_reduce(1, i.expand(len(x), -1, -1), x, "amax"), whole(1, 1, 0, 1).view(1, 4, 1).expand(1, 4, 6)), S, "scatter_reduce", "selection"),
    Case("scatter_reduce amin", call(lambda x, i: x.scatter_reduce(1, i.expand(len(x), -1, -1), 3 * x + 1, "amin", include_self=False), whole(1, 1, 0, 1).view(1, 4, 1).expand(1, 4, 6)), S, "scatter_reduce", "selection"),
    Case("maxout", call(lambda x: x.view(1, 2, 2, 6).amax(2)), S, "amax", "selection", ONE),
    Case("leaky relu by maximum", call(lambda x: torch.maximum(0.1 * x, x)), V, "maximum", "selection", ONE),
    Case("abs by maximum", call(lambda x: torch.maximum(-x, x)), V, "maximum", "selection", ONE),
]  # fmt: skip


def gain(low1: float, low2: float, low_inf: float) -> dict[float, float]:
    return {1.0: low1, 2.0: low2, math.inf: low_inf}


GAIN = [
    Case("softmax", lambda: nn.Softmax(1), V, "softmax.int", "gain", gain(0.5, 0.5, 0.5)),
    Case("softmin", lambda: nn.Softmin(2), S, "softmax.int", "gain", gain(0.5, 0.5, 0.5)),
    Case("softmax of one", lambda: nn.Softmax(1), (1, 3), "softmax.int", "gain", gain(0, 0, 0)),
    Case("log_softmax", lambda: nn.LogSoftmax(1), V, "log_softmax.int", "gain", gain(3, 2, 2)),
    Case("log_softmax of 6", lambda: nn.LogSoftmax(2), S, "log_softmax.int", "gain", gain(5, math.sqrt(6), 2)),
    Case("_softmax", call(lambda x: A._softmax(x, 1, False)), V, "_softmax", "gain", gain(0.5, 0.5, 0.5)),
    Case("_safe_softmax", call(lambda x: A._safe_softmax(x, 1)), V, "_safe_softmax", "gain", gain(0.5, 0.5, 0.5)),
    Case("masked softmax", call(lambda x, m: x.masked_fill(m > 0, -math.inf).softmax(1), torch.tensor([0.0, 1.0, 0.0, 0.0])), V, "softmax.int", "gain", gain(0.5, 0.5, 0.5)),
    Case("_log_softmax", call(lambda x: A._log_softmax(x, 1, False)), V, "_log_softmax", "gain", gain(3, 2, 2)),
    Case("logsumexp", call(lambda x: torch.logsumexp(x, (1, 2))), S, "logsumexp", "gain", gain(1, 1, 1)),
    Case("cross_entropy", call(lambda x, y: F.cross_entropy(x, y, reduction="none")[:, None], whole(2)), V, "nll_loss log_softmax.int", "gain"),
    Case("vector_norm", call(lambda x: torch.linalg.vector_norm(x, dim=2)), S, "linalg_vector_norm", "gain", gain(1, 1, math.sqrt(6))),
    Case("vector_norm 3", call(lambda x: torch.linalg.vector_norm(x, 3, dim=1, keepdim=True)), S, "linalg_vector_norm", "gain", gain(1, 1, 4 ** (1 / 3))),
    Case("vector_norm 1.5", call(lambda x: torch.linalg.vector_norm(x, 1.5, dim=1)), V, "linalg_vector_norm", "gain", gain(1, 4 ** (1 / 1.5 - 0.5), 4 ** (1 / 1.5))),
    Case("norm", call(lambda x: A.norm.ScalarOpt_dim(x, 2, [1])), V, "norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype", "gain", gain(1, 1, 2)),
    Case("norm.Scalar", call(lambda x: A.norm.Scalar(x.view(4), 2)[None]), V, "norm.Scalar", "gain", gain(1, 1, 2)),
    Case("linalg_norm", call(lambda x: torch.linalg.norm(x, dim=(1, 2))), S, "linalg_norm", "gain", gain(1, 1, math.sqrt(24))),
    Case("matrix_norm", call(lambda x: torch.linalg.matrix_norm(x)), S, "linalg_matrix_norm", "gain", gain(1, 1, math.sqrt(24))),
    Case("cdist", call(lambda x, c: torch.cdist(x, c), numbers(5, 4)), V, "cdist", "gain", gain(5, math.sqrt(5), 2)),
    Case("_cdist_forward", call(lambda x, c: A._cdist_forward(x, c, 3.0, None), numbers(5, 4)), V, "_cdist_forward", "gain", gain(5, math.sqrt(5), 4 ** (1 / 3))),
    Case("cdist of sums", call(lambda x, c: torch.cdist(c, x, p=1).T, numbers(3, 4)), V, "cdist", "gain", gain(3, math.sqrt(12), 4)),
    Case("cdist of maxima", call(lambda x, c: torch.cdist(x, c, p=math.inf), numbers(3, 4)), V, "cdist", "gain", gain(3, math.sqrt(3), 1)),
    Case("cdist of many", call(lambda x, c: torch.cdist(x, c), numbers(30, 4)), V, "cdist", "gain", gain(30, math.sqrt(30), 2)),
    Case("l1_loss", call(lambda x, y: F.l1_loss(x, y, reduction="none").sum(1), numbers(1, 4)), V, "l1_loss", "gain", gain(1, 2, 4)),
    Case("root of mse_loss", call(lambda x, y: F.mse_loss(y, x, reduction="none").mean(1).sqrt(), numbers(1, 4)), V, "mse_loss", "gain", gain(0.5, 0.5, 1)),
    Case("cosine_embedding_loss", call(lambda x, y: F.cosine_embedding_loss(1e-5 * x, y, -torch.ones_like(x[:, 0]), 0.1, reduction="none"), numbers(1, 4)), V, "cosine_embedding_loss", "gain"),
    Case("normalize", call(lambda x: F.normalize(x, dim=1, eps=0.5)), V, "div.Tensor", "gain", gain(3, 2, 3)),
    Case("normalize by hand", call(lambda x: x / (x.norm(dim=1, keepdim=True) + 0.5)), V, "div.Tensor", "gain", gain(2, 2, 2)),
    Case("layer_norm", lambda: nn.LayerNorm(6, eps=0.01), S, "layer_norm", "gain"),
    Case("layer_norm 2d", lambda: nn.LayerNorm((4, 6), eps=0.01), S, "layer_norm", "gain"),
    Case("native_layer_norm", call(lambda x: A.native_layer_norm(x, [4], None, None, 0.1)[0]), V, "native_layer_norm", "gain"),
    Case("group_norm", lambda: nn.GroupNorm(2, 4, eps=0.01), T, "group_norm", "gain"),
    Case("instance_norm", lambda: nn.InstanceNorm2d(2, eps=0.01, affine=True), I, "instance_norm", "gain"),
    Case("rms_norm", lambda: nn.RMSNorm(6, eps=0.01), S, "rms_norm", "gain"),
    Case("rms_norm by hand", call(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.01)), S, "mul", "gain"),
    Case("lp_pool2d", lambda: nn.LPPool2d(2, 2, stride=1), I, "avg_pool2d", "gain", gain(4, 2, 2)),
    Case("lp_pool1d p=4", lambda: nn.LPPool1d(4, 3, 2), S, "avg_pool1d", "gain"),
    Case("modulus", call(lambda x: torch.sqrt((x.view(1, 2, 2) ** 2).sum(2))), V, "sum", "gain", gain(1, 1, math.sqrt(2))),
]  # fmt: skip

LINEAR.append(Case("lp_pool2d p=1", lambda: nn.LPPool2d(1, 2), I, "avg_pool2d"))
CASES = [*LINEAR, *SELECTION, *GAIN]
