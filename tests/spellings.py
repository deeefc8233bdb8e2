"""One operation in many spellings, of a stream `x`, a live map `y` of it and a zero `z`: what every proof must bear."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 4


class Spelled(nn.Module):
    """Runs `function(self, x, y, z)`, with weights and buffers for it to use."""

    def __init__(self, function, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.function = function
        self.live, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dead = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.dead.weight)
        nn.init.zeros_(self.dead.bias)
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("nought", torch.zeros(WIDTH))
        self.register_buffer("square", torch.zeros(WIDTH, WIDTH))
        self.register_buffer("endless", torch.full((WIDTH,), float("inf")))

    def forward(self, x):
        return self.function(self, x, self.live(x), self.dead(x))


def written(function):
    """`function(buffer)` writes into a buffer of the shape of `x`, which is returned."""

    def run(m, x, y, z):
        buffer = torch.empty_like(x)
        function(m, x, y, z, buffer)
        return buffer

    return run


def in_place(function):
    """`function` changes a copy of the live map; the copy is returned, whatever the function returns."""

    def run(m, x, y, z):
        fresh = y * 1
        function(m, fresh, x, z)
        return fresh

    return run


def in_place_zero(function):
    """`function` changes a zero; the zero is returned, whatever the function returns."""

    def run(m, x, y, z):
        function(m, z, x, y)
        return z

    return run


def assigned(m, x, y, z):
    z += x
    return z


def part_assigned(m, x, y, z):
    z[:, :2] = x[:, :2]
    return z


def through_a_view(m, x, y, z):
    z.view(-1)[:3].add_(1)
    return z


def through_data(m, x, y, z):
    z.data.add_(x)
    return z


def data_replaced(m, x, y, z):
    z.data = x * 2
    return z


def set_to_another(m, x, y, z):
    z.set_(y.detach().clone())
    return z


def through_detach(m, x, y, z):
    z.detach().copy_(y)
    return z


def inference(m, x, y, z):
    with torch.inference_mode():
        made = m.dead(x)
        made.add_(x)
        return made.clone()


class Shifted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient


SUMS = {
    "x + y": lambda m, x, y, z: x + y,
    "y + x": lambda m, x, y, z: y + x,
    "x + z": lambda m, x, y, z: x + z,
    "z + x": lambda m, x, y, z: z + x,
    "y + z": lambda m, x, y, z: y + z,
    "z + z": lambda m, x, y, z: z + z,
    "x + 0": lambda m, x, y, z: x + 0,
    "0 + x": lambda m, x, y, z: 0 + x,
    "z + 1": lambda m, x, y, z: z + 1,
    "1 + z": lambda m, x, y, z: 1 + z,
    "z.add(x)": lambda m, x, y, z: z.add(x),
    "z.add(other=x)": lambda m, x, y, z: z.add(other=x),
    "torch.add(z, x)": lambda m, x, y, z: torch.add(z, x),
    "torch.add(z, other=x)": lambda m, x, y, z: torch.add(z, other=x),
    "torch.add(x, other=z)": lambda m, x, y, z: torch.add(x, other=z),
    "torch.add(x, other=y)": lambda m, x, y, z: torch.add(x, other=y),
    "torch.add(input=z, other=x)": lambda m, x, y, z: torch.add(input=z, other=x),
    "torch.add(other=z, input=x)": lambda m, x, y, z: torch.add(other=z, input=x),
    "torch.add(x1=z, x2=x)": lambda m, x, y, z: torch.add(x1=z, x2=x),
    "torch.add(z, x, alpha=2)": lambda m, x, y, z: torch.add(z, x, alpha=2),
    "torch.add(x, z, alpha=2)": lambda m, x, y, z: torch.add(x, z, alpha=2),
    "torch.add(x, y, alpha=2)": lambda m, x, y, z: torch.add(x, y, alpha=2),
    "torch.add(x, y, alpha=0)": lambda m, x, y, z: torch.add(x, y, alpha=0),
    "torch.add(z, z, alpha=3)": lambda m, x, y, z: torch.add(z, z, alpha=3),
    "add out": written(lambda m, x, y, z, buffer: torch.add(z, x, out=buffer)),
    "add out of live": written(lambda m, x, y, z, buffer: torch.add(x, y, out=buffer)),
    "add out of zeros": written(lambda m, x, y, z, buffer: torch.add(z, z, out=buffer)),
    "add into zero": lambda m, x, y, z: torch.add(x, y, out=z),
    "add alpha out": written(lambda m, x, y, z, buffer: torch.add(x, y, alpha=3, out=buffer)),
    "aten.add": lambda m, x, y, z: torch.ops.aten.add(z, x),
    "aten.add.Tensor alpha": lambda m, x, y, z: torch.ops.aten.add.Tensor(z, x, alpha=2),
    "operator +=": assigned,
    "z.add_(x)": in_place_zero(lambda m, z, x, y: z.add_(x)),
    "z.add_(other=x)": in_place_zero(lambda m, z, x, y: z.add_(other=x)),
    "y.add_(z)": in_place(lambda m, y, x, z: y.add_(z)),
    "y.add_(z, alpha=2)": in_place(lambda m, y, x, z: y.add_(z, alpha=2)),
    "z.__iadd__(x)": in_place_zero(lambda m, z, x, y: z.__iadd__(x)),
    "x.__radd__(z)": lambda m, x, y, z: x.__radd__(z),
    "x - z": lambda m, x, y, z: x - z,
    "z - x": lambda m, x, y, z: z - x,
    "y - x": lambda m, x, y, z: y - x,
    "torch.sub(x, z, alpha=3)": lambda m, x, y, z: torch.sub(x, z, alpha=3),
    "torch.sub(z, other=x)": lambda m, x, y, z: torch.sub(z, other=x),
    "torch.subtract(x, z)": lambda m, x, y, z: torch.subtract(x, z),
    "torch.rsub(z, x)": lambda m, x, y, z: torch.rsub(z, x),
    "torch.rsub(x, z)": lambda m, x, y, z: torch.rsub(x, z),
    "0 - x": lambda m, x, y, z: 0 - x,
    "1 - z": lambda m, x, y, z: 1 - z,
    "z.sub_(x)": in_place_zero(lambda m, z, x, y: z.sub_(x)),
    "sum of both": lambda m, x, y, z: sum([x, z]),
    "stack sum": lambda m, x, y, z: torch.stack([x, z]).sum(0),
    "stack tensors= sum": lambda m, x, y, z: torch.stack(tensors=[z, x]).sum(dim=0),
    "promoted": lambda m, x, y, z: (x.double() + z).float(),
    "integer zero": lambda m, x, y, z: x + z.long(),
    "broadcast": lambda m, x, y, z: z[:1] + x,
    "broadcast back": lambda m, x, y, z: x + z[:1],
    "accumulated": lambda m, x, y, z: torch.stack([x, y, z]).sum(axis=0),
}
PRODUCTS = {
    "z * x": lambda m, x, y, z: z * x,
    "x * 0": lambda m, x, y, z: x * 0,
    "0 * x": lambda m, x, y, z: 0 * x,
    "x.mul(0)": lambda m, x, y, z: x.mul(0),
    "x.mul(other=z)": lambda m, x, y, z: x.mul(other=z),
    "torch.mul(x, other=z)": lambda m, x, y, z: torch.mul(x, other=z),
    "torch.multiply(z, x)": lambda m, x, y, z: torch.multiply(z, x),
    "x * 1": lambda m, x, y, z: x * 1,
    "y * x": lambda m, x, y, z: y * x,
    "x *= nought": in_place(lambda m, y, x, z: y.mul_(m.nought)),
    "z *= x": in_place_zero(lambda m, z, x, y: z.mul_(x)),
    "x / z + 1": lambda m, x, y, z: z / (x.abs() + 1),
    "z / 2": lambda m, x, y, z: z / 2,
    "2 / (z + 1)": lambda m, x, y, z: 2 / (z + 1),
    "x @ square": lambda m, x, y, z: x @ m.square,
    "matmul other=": lambda m, x, y, z: torch.matmul(x, other=m.square),
    "mm mat2=": lambda m, x, y, z: torch.mm(x, mat2=m.square),
    "einsum": lambda m, x, y, z: torch.einsum("bi,ij->bj", x, m.square),
    "einsum list": lambda m, x, y, z: torch.einsum("bi,ij->bj", [x, m.live.weight]),
    "addcmul": lambda m, x, y, z: torch.addcmul(x, y, z),
    "addcmul value": lambda m, x, y, z: torch.addcmul(z, y, x, value=2),
    "addcmul zero": lambda m, x, y, z: torch.addcmul(z, y, z, value=2),
    "addcdiv": lambda m, x, y, z: torch.addcdiv(z, y, x.abs() + 1),
    "addmm": lambda m, x, y, z: torch.addmm(z, x, m.square),
    "addmm live": lambda m, x, y, z: torch.addmm(z, x, m.live.weight),
    "addmm live input": lambda m, x, y, z: torch.addmm(y, x, m.square),
    "addmm input=": lambda m, x, y, z: torch.addmm(input=y, mat1=x, mat2=m.square),
    "addmm beta": lambda m, x, y, z: torch.addmm(y, x, m.square, beta=0),
    "baddbmm": lambda m, x, y, z: torch.baddbmm(x[None], x[None], m.square[None])[0],
    "baddbmm batch2=": lambda m, x, y, z: torch.baddbmm(z[None], batch1=x[None], batch2=m.square[None])[0],
    "lerp": lambda m, x, y, z: torch.lerp(z, x, 0.5),
    "lerp weight=": lambda m, x, y, z: torch.lerp(input=z, end=z, weight=0.5),
    "x * inf * 0": lambda m, x, y, z: torch.nan_to_num(m.endless * z, nan=7.0),
    "masked -inf": lambda m, x, y, z: torch.nan_to_num(x.masked_fill(x > 0, float("-inf")) * z, nan=7.0),
}
LAYERS = {
    "F.linear": lambda m, x, y, z: F.linear(x, m.square),
    "F.linear bias=": lambda m, x, y, z: F.linear(x, m.square, bias=m.scale),
    "F.linear positional bias": lambda m, x, y, z: F.linear(x, m.square, m.scale),
    "F.linear zero bias": lambda m, x, y, z: F.linear(input=x, weight=m.square, bias=m.nought),
    "F.linear of zero": lambda m, x, y, z: F.linear(z, m.live.weight, m.scale),
    "conv1d": lambda m, x, y, z: F.conv1d(x[:, None], m.square[:1, None, :3], padding=1)[:, 0],
    "conv1d bias": lambda m, x, y, z: F.conv1d(x[:, None], m.square[:1, None, :3], m.scale[:1], padding=1)[:, 0],
    "conv1d bias=": lambda m, x, y, z: F.conv1d(
        x[:, None], weight=m.square[:1, None, :3], bias=m.scale[:1], padding="same"
    )[:, 0],
    "layer_norm": lambda m, x, y, z: F.layer_norm(x, (WIDTH,), m.nought, m.nought),
    "layer_norm bias=": lambda m, x, y, z: F.layer_norm(x, (WIDTH,), weight=m.nought, bias=m.scale),
    "layer_norm plain": lambda m, x, y, z: F.layer_norm(x, (WIDTH,)),
    "torch.layer_norm": lambda m, x, y, z: torch.layer_norm(x, (WIDTH,), m.nought, m.scale),
    "batch_norm": lambda m, x, y, z: F.batch_norm(x, m.nought, m.nought + 1, m.nought, m.nought),
    "batch_norm bias": lambda m, x, y, z: F.batch_norm(x, m.nought, m.nought + 1, m.nought, bias=m.scale),
    "torch.batch_norm": lambda m, x, y, z: torch.batch_norm(
        x, m.nought, m.scale, m.nought, m.nought + 1, False, 0.1, 1e-5, False
    ),
    "batch_norm training": lambda m, x, y, z: F.batch_norm(
        torch.cat([x, x + 1]), m.nought.clone(), m.nought + 1, m.scale, m.scale, training=True
    )[: len(x)],
    "rms_norm": lambda m, x, y, z: F.rms_norm(x, (WIDTH,), m.nought),
    "group_norm": lambda m, x, y, z: F.group_norm(x, 2, m.nought, m.scale),
    "group_norm of zero": lambda m, x, y, z: F.group_norm(z, 2, m.scale),
    "embedding": lambda m, x, y, z: F.embedding((x > 0).long()[:, 0], m.square),
    "softmax": lambda m, x, y, z: F.softmax(z, 1),
    "dropout": lambda m, x, y, z: F.dropout(x, 0.5, False),
    "dropout training=": lambda m, x, y, z: torch.dropout(x, p=0.5, train=False),
    "dropout of zero": lambda m, x, y, z: F.dropout(z, 0.5, training=True),
    "alpha_dropout of zero": lambda m, x, y, z: F.alpha_dropout(z, 0.5, training=True),
}
ELEMENTS = {
    "relu": lambda m, x, y, z: F.relu(x),
    "relu inplace": in_place(lambda m, y, x, z: F.relu(y, inplace=True)),
    "torch.relu_": in_place(lambda m, y, x, z: torch.relu_(y)),
    "x.relu()": lambda m, x, y, z: x.relu(),
    "relu of relu": lambda m, x, y, z: x.relu().relu_(),
    "relu of exp": lambda m, x, y, z: x.exp().relu(),
    "relu of zero": lambda m, x, y, z: F.relu(z),
    "relu of sum": lambda m, x, y, z: F.relu(torch.add(x.abs(), other=y)),
    "relu of sum of abs": lambda m, x, y, z: F.relu(torch.add(x.abs(), other=y.abs())),
    "relu of sum alpha": lambda m, x, y, z: F.relu(torch.add(x.abs(), y.abs(), alpha=-2)),
    "relu of product": lambda m, x, y, z: F.relu(torch.mul(x.abs(), other=-1)),
    "relu of product of abs": lambda m, x, y, z: F.relu(x.abs().mul(other=y)),
    "relu of cat": lambda m, x, y, z: F.relu(torch.cat(tensors=[x.abs()[:, :2], y[:, :2]], dim=1)),
    "relu of pad": lambda m, x, y, z: F.relu(F.pad(x.abs()[:, :2], (1, 1), "constant", -1.0)),
    "relu of softplus": lambda m, x, y, z: F.relu(F.softplus(x, beta=-1.0)),
    "relu of where": lambda m, x, y, z: F.relu(torch.where(x > 0, x.abs(), y)),
    "relu of clamp": lambda m, x, y, z: F.relu(x.clamp(min=-1)),
    "relu of clamp min=": lambda m, x, y, z: F.relu(torch.clamp(x, min=0.5)),
    "relu of clamp max": lambda m, x, y, z: F.relu(torch.clamp(x, 0, -2)),
    "relu of mode": lambda m, x, y, z: F.relu(
        F.interpolate(x.abs().view(-1, 1, 2, 2), None, 2, "bicubic")[..., ::2, ::2].reshape(-1, WIDTH)
    ),
    "relu of divisor": lambda m, x, y, z: F.relu(
        F.avg_pool2d(x.abs().view(-1, 1, 2, 2), 1, divisor_override=-1).view(-1, WIDTH)
    ),
    "relu of copy": lambda m, x, y, z: F.relu(x.abs().copy_(y)),
    "relu of fill": lambda m, x, y, z: F.relu(x.abs().fill_(-1)),
    "relu of integers": lambda m, x, y, z: F.relu(((x * 100).to(torch.int8).square()).to(torch.int8)).float(),
    "gelu of zero": lambda m, x, y, z: F.gelu(z, approximate="tanh"),
    "silu of zero": lambda m, x, y, z: F.silu(z, inplace=True),
    "sigmoid of zero": lambda m, x, y, z: torch.sigmoid(z),
    "elu of zero": lambda m, x, y, z: F.elu(z, alpha=-1.0),
    "clamp of zero": lambda m, x, y, z: z.clamp(-1, 1),
    "clamp min= of zero": lambda m, x, y, z: z.clamp(min=1),
    "clamp_min of zero": lambda m, x, y, z: torch.clamp_min(z, 0.5),
    "clamp_ of zero": in_place_zero(lambda m, z, x, y: z.clamp_(min=2.0)),
    "clip of zero": lambda m, x, y, z: torch.clip(z, max=-1.0),
    "clamp by tensor": lambda m, x, y, z: torch.clamp(z, min=x),
    "hardtanh of zero": lambda m, x, y, z: F.hardtanh(z, 1.0, 2.0),
    "threshold of zero": lambda m, x, y, z: F.threshold(z, 1.0, 3.0),
    "pow 2 of zero": lambda m, x, y, z: z**2,
    "pow 0 of zero": lambda m, x, y, z: torch.pow(z, exponent=0),
    "cos of zero": lambda m, x, y, z: z.cos(),
    "neg": lambda m, x, y, z: -z,
    "abs": lambda m, x, y, z: torch.absolute(z),
    "foreign spelled relu": lambda m, x, y, z: Shifted.apply(z),
}
STRUCTURES = {
    "x": lambda m, x, y, z: x,
    "clone": lambda m, x, y, z: x.clone(),
    "contiguous": lambda m, x, y, z: x.t().contiguous().t(),
    "to double and back": lambda m, x, y, z: x.to(torch.float64).to(torch.float32),
    "to half and back": lambda m, x, y, z: x.to(dtype=torch.float16).float(),
    "type_as": lambda m, x, y, z: z.type_as(x),
    "view": lambda m, x, y, z: z.view(-1, WIDTH),
    "view dtype": lambda m, x, y, z: (-z).view(torch.int32).float(),
    "reshape": lambda m, x, y, z: torch.reshape(z, shape=(-1, WIDTH)),
    "permute": lambda m, x, y, z: z.permute(1, 0).permute((1, 0)),
    "transpose": lambda m, x, y, z: torch.transpose(z, dim0=0, dim1=1).T,
    "flip": lambda m, x, y, z: x.flip(1),
    "roll": lambda m, x, y, z: torch.roll(x, shifts=1, dims=1),
    "roll 2": lambda m, x, y, z: torch.roll(x, 2, 1),
    "cat": lambda m, x, y, z: torch.cat([z[:, :2], z[:, 2:]], 1),
    "cat tensors=": lambda m, x, y, z: torch.cat(tensors=[z[:, :2], x[:, 2:]], dim=1),
    "concat tensors=": lambda m, x, y, z: torch.concat(tensors=(z[:, :2], z[:, :2]), dim=1),
    "cat dim= axis": lambda m, x, y, z: torch.cat([x[:, :2], z[:, 2:]], axis=1),
    "cat out": written(lambda m, x, y, z, buffer: torch.cat([z[:, :2], x[:, 2:]], 1, out=buffer)),
    "pad": lambda m, x, y, z: F.pad(z[:, :2], (1, 1)),
    "pad value": lambda m, x, y, z: F.pad(z[:, :2], (1, 1), value=1.0),
    "pad positional value": lambda m, x, y, z: F.pad(z[:, :2], (1, 1), "constant", 1.0),
    "pad reflect": lambda m, x, y, z: F.pad(z[:, :2], (1, 1), mode="reflect"),
    "chunk": lambda m, x, y, z: torch.cat(x.chunk(2, dim=1)[::-1], 1),
    "chunk positional": lambda m, x, y, z: torch.cat(torch.chunk(x, 2, 1), 1),
    "split": lambda m, x, y, z: torch.cat(z.split([1, 3], 1), 1),
    "unbind": lambda m, x, y, z: torch.stack(z.unbind(1), 1),
    "expand": lambda m, x, y, z: z[:1].expand(len(x), -1),
    "getitem": lambda m, x, y, z: x[:, [1, 0, 3, 2]],
    "getitem step": lambda m, x, y, z: x[:, ::2].repeat(1, 2),
    "mean": lambda m, x, y, z: z.mean(1, keepdim=True).expand(-1, WIDTH),
    "mean dim=": lambda m, x, y, z: x.mean(dim=1, keepdim=True).expand(-1, WIDTH),
    "sum axis=": lambda m, x, y, z: x.sum(axis=1, keepdims=True).expand(-1, WIDTH),
    "where": lambda m, x, y, z: torch.where(x > 0, z, z),
    "where other=": lambda m, x, y, z: torch.where(x > 0, input=z, other=x),
    "where number": lambda m, x, y, z: torch.where(x > 0, z, 1.0),
    "where zero": lambda m, x, y, z: torch.where(x > 0, z, 0.0),
    "masked_fill": lambda m, x, y, z: z.masked_fill(x > 0, 1.0),
    "masked_fill zero": lambda m, x, y, z: z.masked_fill(x > 0, value=0.0),
    "index_add": lambda m, x, y, z: torch.index_add(z, 1, torch.tensor([0]), x[:, :1]),
    "index_add source=": lambda m, x, y, z: z.index_add(dim=1, index=torch.tensor([0]), source=z[:, :1]),
    "scatter_add": lambda m, x, y, z: z.scatter_add(1, torch.zeros_like(x).long(), x),
    "scatter src=": lambda m, x, y, z: z.scatter(1, torch.zeros_like(x).long(), src=x),
    "index_copy": lambda m, x, y, z: z.index_copy(1, torch.tensor([0]), x[:, :1]),
    "zeros_like": lambda m, x, y, z: torch.zeros_like(x),
    "ones_like": lambda m, x, y, z: torch.ones_like(x),
    "full_like": lambda m, x, y, z: torch.full_like(x, fill_value=0),
    "full_like 2": lambda m, x, y, z: torch.full_like(x, 2.0),
    "new_zeros": lambda m, x, y, z: x.new_zeros(x.shape),
    "zero_": in_place(lambda m, y, x, z: y.zero_()),
    "zero_ of a part": in_place(lambda m, y, x, z: y[:, :2].zero_()),
    "fill_": in_place(lambda m, y, x, z: y.fill_(0)),
    "fill_ 1": in_place_zero(lambda m, z, x, y: z.fill_(1)),
    "copy_": in_place_zero(lambda m, z, x, y: z.copy_(x)),
    "copy_ of zero": in_place(lambda m, y, x, z: y.copy_(z)),
    "part assigned": part_assigned,
    "through a view": through_a_view,
    "through data": through_data,
    "data replaced": data_replaced,
    "set_": set_to_another,
    "through detach": through_detach,
    "inference mode": inference,
    "numel": lambda m, x, y, z: x + z.shape[1],
    "cumsum": lambda m, x, y, z: z.cumsum(1),
    "interpolate": lambda m, x, y, z: F.interpolate(z.view(-1, 1, 2, 2), scale_factor=1, mode="bilinear").view(
        -1, WIDTH
    ),
    "max_pool": lambda m, x, y, z: F.max_pool1d(z[:, None], 3, 1, 1)[:, 0],
    "avg_pool": lambda m, x, y, z: F.avg_pool1d(x[:, None], kernel_size=3, stride=1, padding=1)[:, 0],
    "max": lambda m, x, y, z: torch.max(x, other=z),
    "maximum": lambda m, x, y, z: torch.maximum(z, z),
    "max dim": lambda m, x, y, z: z.max(1, keepdim=True)[0].expand(-1, WIDTH),
}
EXPRESSIONS = SUMS | PRODUCTS | LAYERS | ELEMENTS | STRUCTURES


def fresh(network):
    """Inputs that no trace has seen: other numbers, other numbers of samples; each with the outputs."""
    generator = torch.Generator().manual_seed(7)
    network = copy.deepcopy(network).eval()
    for samples, scale in ((1, 1.0), (3, 10.0), (6, 0.1)):
        x = scale * torch.randn(samples, WIDTH, generator=generator)
        torch.manual_seed(0)
        with torch.no_grad():
            y = network(x.clone())
        yield x, y
