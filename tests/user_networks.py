"""Networks as people write them, for crops of 16 px: flattened by ``view``, lazy, with more than one output, and so on.

Those of the first part follow the public definitions of DatasetCondensation (networks.py), narrower.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu


class MLP(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc_1, self.fc_2, self.fc_3 = nn.Linear(768, 32), nn.Linear(32, 32), nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = x.view(x.size(0), -1)
        return self.fc_3(relu(self.fc_2(relu(self.fc_1(out)))))


class Flattened(nn.Module):
    """Features, flattened by view, and a classifier."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x: Tensor) -> Tensor:
        out = self.features(x)
        return self.classifier(out.view(out.size(0), -1))


def conv_net(num_classes: int, norm: str = "instance") -> nn.Module:
    """ConvNet of two blocks."""
    layers: list[nn.Module] = []
    for channels in (3, 8):
        layers += [
            nn.Conv2d(channels, 8, kernel_size=3, padding=1),
            nn.GroupNorm(8, 8, affine=True) if norm == "instance" else nn.BatchNorm2d(8, affine=True),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(kernel_size=2, stride=2),
        ]
    return Flattened(nn.Sequential(*layers), nn.Linear(8 * 16, num_classes))


def le_net(num_classes: int) -> nn.Module:
    """LeNet."""
    features = nn.Sequential(
        nn.Conv2d(3, 6, kernel_size=5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5), nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=2, stride=2),
    )  # fmt: skip
    rest = nn.Sequential(nn.Linear(64, 24), nn.ReLU(inplace=True), nn.Linear(24, 16), nn.ReLU(inplace=True))
    return Flattened(features, nn.Sequential(rest, nn.Linear(16, num_classes)))


def alex_net(num_classes: int) -> nn.Module:
    """AlexNet."""
    features = nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=2, stride=2),
        nn.Conv2d(8, 12, kernel_size=5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=2, stride=2),
        nn.Conv2d(12, 8, kernel_size=3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=2, stride=2),
    )  # fmt: skip
    return Flattened(features, nn.Linear(8 * 4, num_classes))


def vgg(num_classes: int) -> nn.Module:
    """VGG with batch norm."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (8, 0, 8, 8, 0, 16, 16, 0):
        if width:
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)]
            channels = width
        else:
            layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
    return Flattened(nn.Sequential(*layers, nn.AvgPool2d(kernel_size=1, stride=1)), nn.Linear(16 * 4, num_classes))


class BlockAP(nn.Module):
    """A basic block that pools instead of striding."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, planes, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, planes, 1, bias=False), nn.AvgPool2d(stride, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        if self.stride != 1:
            out = avg_pool2d(out, kernel_size=2, stride=2)
        return relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet_ap(num_classes: int) -> nn.Module:
    """ResNet_AP of two blocks."""
    return Flattened(nn.Sequential(BlockAP(3, 8, 2), BlockAP(8, 8, 2)), nn.Linear(8 * 16, num_classes))


FLATTENING = ("MLP", "conv_net", "le_net", "alex_net", "vgg", "resnet_ap")


class Small(nn.Module):
    """What the others are made of: convolution, batch norm, dropout, a linear head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.2)
        self.head = nn.Linear(8, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)).mean((2, 3)))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class ViewsInTraining(Small):
    """Flattens by view in training mode alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        maps = self.norm(self.conv(x))
        maps = maps.view(x.size(0), 8, -1) if self.training else maps.flatten(2)
        return self.head(maps.mean(2))


class MergesCrops(ViewsInTraining):
    """Takes crops and channels for one dimension, which of one crop alone is a view in either layout."""

    def forward(self, x: Tensor) -> Any:
        maps = self.norm(self.conv(x))
        return self.head(maps.view(-1, maps.shape[2], maps.shape[3]).view(maps.shape).mean((2, 3)))


class Square(torch.autograd.Function):
    """Views the gradient, which comes in the layout of the forward's output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (gradient.view(-1) * 2 * x.reshape(-1)).view(x.shape)


class ViewsInBackward(ViewsInTraining):
    def forward(self, x: Tensor) -> Any:
        return self.head(relu(Square.apply(self.norm(self.conv(x)))).mean((2, 3)))


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor | None


class Auxiliary(Small):
    """As GoogLeNet: auxiliary logits in training mode alone, whose head gets no gradient."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.aux = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        return Outputs(self.head(features), self.aux(features)) if self.training else self.head(features)


class WithFeatures(Small):
    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        return self.head(features), features


class Named(Small):
    def forward(self, x: Tensor) -> Any:
        return {"loss": None, "logits": super().forward(x)}


class ModelOutput(OrderedDict[str, Any]):
    """As transformers has it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Attributed(Small):
    def forward(self, x: Tensor) -> Any:
        return ModelOutput(logits=super().forward(x))


class Unused(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.other = nn.Linear(8, 5)


def lazy(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))


class Unsaved(Small):
    """A running mean in a buffer that the state dict does not have."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.5).add_(features.mean(0), alpha=0.5)
        return self.head(features - self.mean)


class Tied(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.mid = nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.mid

    def features(self, x: Tensor) -> Tensor:
        return self.again(relu(self.mid(relu(self.conv(x))))).mean((2, 3))


class Strided(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head.weight = nn.Parameter(torch.randn(8, num_classes).mul_(0.1).t())


class Complex(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.phase = nn.Parameter(torch.randn(8, dtype=torch.complex64))

    def features(self, x: Tensor) -> Tensor:
        return (super().features(x) * self.phase).real


class DoubleHead(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head.double()

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return self.head(self.features(x).double())


class Half(Small):
    """Weights of the head, and logits, in half precision."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head.bfloat16()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).bfloat16()).half()


class Frozen(Small):
    """The stem is not trained, and its norm stays in eval mode."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv.requires_grad_(False)
        self.norm.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self


class Drawing(Small):
    """Draws from Python's and numpy's generators."""

    def features(self, x: Tensor) -> Tensor:
        noise = random.gauss(0, 1) + float(np.random.randn()) if self.training else 0.0  # noqa: NPY002  it draws from the global state on purpose
        return super().features(x) + 0.01 * noise


class Skipping(Small):
    """Leaves out a layer now and then."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.more = nn.Linear(8, 8)

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        return features if self.training and torch.rand(()) < 0.4 else features + self.more(features)


class Masked(Small):
    """A mask of bool, and a module of Python among its attributes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mask", torch.arange(8) != 3)
        self.numbers = np

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * self.mask


class TensorState(Small):
    """Extra state that is a tensor."""

    steps = 0

    def features(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return super().features(x)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)


class Caching(Small):
    """Keeps what its first forward made."""

    grid: Tensor | None = None

    def features(self, x: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[-1], device=x.device)
        return super().features(x + self.grid)


class Switching(Small):
    """Its forward goes into training mode and back."""

    def forward(self, x: Tensor) -> Any:
        before = self.training
        self.train(before)
        return super().forward(x)


def weight_norm(num_classes: int) -> nn.Module:
    """Both kinds, whose hooks and parametrizations make weights anew."""
    network = Small(num_classes)
    network.conv = torch.nn.utils.weight_norm(network.conv)
    network.head = torch.nn.utils.parametrizations.weight_norm(network.head)
    return network


def spectral_norm(num_classes: int) -> nn.Module:
    """Both kinds."""
    network = Small(num_classes)
    network.conv = torch.nn.utils.spectral_norm(network.conv)
    setattr(network, "head", torch.nn.utils.parametrizations.spectral_norm(network.head))  # noqa: B010  types as Module
    return network


def scripted(num_classes: int) -> nn.Module:
    return torch.jit.script(conv_net(num_classes))


def parallel(num_classes: int) -> nn.Module:
    return nn.DataParallel(Small(num_classes))


def compiled(num_classes: int) -> Any:
    return torch.compile(Small(num_classes), backend="eager")


class Unreturning(nn.Module):
    """Its `train` and `eval` return nothing, and it is lazy."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.LazyLinear(num_classes)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def eval(self) -> Any:
        super().eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flat(x))
        return logits


class Replacing(Small):
    """Puts another tensor in the place of a buffer."""

    mean: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mean", torch.zeros(8))

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * features.detach().mean(0)
        return features - self.mean


class Home:
    """Its attribute makes a network."""

    @staticmethod
    def network(num_classes: int) -> nn.Module:
        return Small(num_classes)


class Hooked(Small):
    """Reads features from a list that a hook's closure fills."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.found = found = list[Tensor]()
        self.norm.register_forward_hook(lambda _layer, _inputs, output: found.append(output))

    def features(self, x: Tensor) -> Tensor:
        super().features(x)
        return self.found.pop().mean((2, 3))


class Closed(Small):
    """Calls its layers by a function that refers to itself."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.stem = lambda x: self.norm(self.conv(x))

    def features(self, x: Tensor) -> Tensor:
        return self.stem(x).mean((2, 3))


class Thawing(Small):
    """Trains its stem from the fourth step on."""

    steps: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv.requires_grad_(False)
        self.register_buffer("steps", torch.tensor(0))

    def features(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            if self.steps == 4:
                self.conv.requires_grad_(True)
        return super().features(x)


class Keywords(Small):
    """Passes its arguments on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class NoKeywords(Small):
    """Takes any arguments, but for the number of classes."""

    def __init__(self, **kwargs: Any) -> None:
        if "num_classes" in kwargs:
            raise TypeError("unexpected keyword argument 'num_classes'")
        super().__init__(3)


class WhollyDouble(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.double()

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.double())


class WhollyBfloat16(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.bfloat16()

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.bfloat16())


class OfTheBatch(Small):
    """Batch norm without running statistics."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)


TRAINED = (
    *FLATTENING, "ViewsInTraining", "MergesCrops", "ViewsInBackward", "Auxiliary", "WithFeatures", "Named",
    "Attributed", "Unused", "lazy", "Unreturning", "Replacing", "Home.network", "Tied", "Strided", "Complex",
    "DoubleHead", "Half", "Frozen", "Drawing", "Skipping", "Masked", "TensorState", "Caching", "Switching",
    "weight_norm", "spectral_norm", "scripted", "parallel", "compiled", "Hooked", "Closed", "Thawing", "Keywords",
    "NoKeywords", "WhollyDouble", "WhollyBfloat16", "OfTheBatch",
)  # fmt: skip


class SetState(Small):
    def get_extra_state(self) -> Any:
        return {"seen": {1, 2}}

    def set_extra_state(self, state: Any) -> None:
        pass


class Counting(Small):
    """State between calls that no checkpoint has."""

    calls = 0

    def features(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().features(x) * (1 + 0.5 * (self.calls % 2))


class Rising(Small):
    """State between calls, whose share in the logits is small."""

    calls = 0

    def features(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().features(x) * (1 + 1e-4 * self.calls)


class CountsEvaluations(Small):
    """Is another network each time it is tested."""

    calls = 0

    def features(self, x: Tensor) -> Tensor:
        self.calls += not self.training
        return super().features(x) + self.calls


class Drawn(Small):
    """Numbers that are drawn once, and that nothing saves."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.scale = torch.rand(8)

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * self.scale


class HalfSaved(Small):
    """A state dict without the head."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if "head" not in key}

    def load_state_dict(self, state_dict: Any, *_args: Any, **_kwargs: Any) -> Any:
        return super().load_state_dict(state_dict, strict=False)


class FromWeights(Small):
    """A tensor made of a weight, once."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.scale = self.conv.weight.mean((1, 2, 3)) + 1

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * self.scale


class Exiting(Small):
    def features(self, x: Tensor) -> Tensor:
        raise SystemExit(len(x) and 3)


class Nowhere(Small):
    """Weights without memory."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.to("meta")


instance = Small(3)


class Carrying(Small):
    """Carries a graph from one step into the next."""

    hidden: Tensor | None = None

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        self.hidden = features.mean(0) if self.hidden is None else 0.5 * self.hidden + features.mean(0)
        return features + self.hidden


class Growing(Small):
    """Makes parameters in its first forward."""

    def features(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(8))
        return super().features(x) * self.scale


class NotCalled(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.later = nn.LazyLinear(3)


class Boxed(Small):
    def forward(self, x: Tensor) -> Any:
        return {"out": super().forward(x)}


class FeaturesFirst(WithFeatures):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[::-1]


class Detached(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).detach()


class Expanded(Small):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(1).expand(8))

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * self.scale


class Squeezing(Small):
    """Loses the dimension of a single crop."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).squeeze()


class Whole(Small):
    """Batch norm after the pooling, which one crop has no variance for."""

    norm: Any

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.BatchNorm1d(8)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).mean((2, 3)))


class WrongKind(Small):
    """Weights of another kind than crops are."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.double()


class WideComplex(Complex):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.phase = nn.Parameter(torch.randn(8, dtype=torch.complex128))

    def features(self, x: Tensor) -> Tensor:
        return super().features(x).float()


# What is said of each, before the first step.
REFUSED = {
    "SetState": "expected a state dict of tensors, which a .safetensors file can hold, found _extra_state of type dict",
    "Counting": "gives other logits when it is called again: it keeps state outside of its parameters and buffers",
    "Rising": "gives other logits when it is called again",
    "CountsEvaluations": "gives other logits when it is called again",
    "Unsaved": "constructed again with its saved weights it gives other logits",
    "Drawn": "constructed again with its saved weights it gives other logits",
    "HalfSaved": "constructed again with its saved weights it gives other logits",
    "FromWeights": "constructed again with its saved weights it gives other logits",
    "Exiting": "SystemExit: 3",
    "Nowhere": "cannot be made again: Cannot copy out of meta tensor",
    "instance": "is a network already; give its class",
    "Carrying": "a step of 2 crops fails: Trying to backward through the graph a second time",
    "Growing": "its forward makes or changes parameters or buffers",
    "NotCalled": "expected a forward that calls its lazy layers, found none of later.weight",
    "Boxed": "expected logits: a tensor, something with a tensor named 'logits'",
    "FeaturesFirst": r"expected logits \[2, 3\] for 2 crops.*found \[2, 8\]",
    "Detached": "does not require grad",
    "Expanded": "expected parameters whose numbers have separate memory.*found scale, which is expanded",
    "WrongKind": "does not take crops of 16 px: .*type",
    "WideComplex": "found phase of torch.complex128",
}
