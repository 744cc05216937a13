"""Homeworks 1 to 3: typical mistakes are refused, with a message that says which; other right solutions pass.

No kernel: the cells of the teacher's notebook are executed here, with the body of one task exchanged.
"""
import ast
import contextlib
import io
import math
import textwrap

import nbformat
import pytest
import torch
from conftest import ROOT

from densegen.course.homework import recording

HOMEWORKS = ("hw1_energy", "hw2_flows", "hw3_coupling")
BEGIN, END = "    ### BEGIN SOLUTION", "    ### END SOLUTION"
HIDDEN = "### BEGIN HIDDEN TESTS"


def cells(stem):
    "The code cells of a homework by their names, in order."
    notebook = nbformat.read(ROOT / "nbs" / f"{stem}.ipynb", as_version=4)
    return {c.metadata.nbgrader.grade_id.split("-", 1)[1]: c for c in notebook.cells if c.cell_type == "code"}


def with_body(source, body):
    "A task's cell with another solution."
    before, after = source.split(BEGIN)[0], source.split(END)[1]
    return before + textwrap.indent(body.strip("\n"), "    ") + after


def up_to(stem, task, body=None):
    "The namespace in front of a task's check, and the check's source, with `body` as the task's solution."
    space = {"__name__": "homework"}
    for name, cell in cells(stem).items():
        source = cell.source
        if name == f"{task}-check":
            return space, source
        if name == task and body is not None:
            source = with_body(source, body)
        if name.endswith("-check"):
            source = source.split("with visible(")[0].split(HIDDEN)[0]  # what later cells may need of it
        if not name.startswith(("picture", "yours")):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, name, "exec"), space)
    raise LookupError(task)


def tried(stem, task, body=None):
    "What the student is told, and what the hidden check says: `None` if it is content."
    space, source = up_to(stem, task, body)
    shown, hidden = source.split(HIDDEN)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(shown, task, "exec"), space)
    try:
        exec(compile(hidden, task, "exec"), space)
    except Exception as error:
        return told.getvalue(), f"{type(error).__name__}: {error}"
    return told.getvalue(), None


# homework, task: {mistake: (body, a part of what the student is told)}
WRONG = {
    ("hw1_energy", "energy"): {
        "no factor 1/2": ("return x.square().sum(1) / 4 + bumps(x, centres) @ theta", "factor 1/2"),
        "components not added": ("return x.square()[:, 0] / 8 + bumps(x, centres) @ theta", "add up the components"),
        "mean over components": ("return x.square().mean(1) / 8 + bumps(x, centres) @ theta", "energy is 0.499"),
        "sign of the bumps": ("return x.square().sum(1) / 8 - bumps(x, centres) @ theta", "energy is -3"),
        "mean over bumps": ("return x.square().sum(1) / 8 + (bumps(x, centres) * theta).mean(1)", "add up to 3"),
        "a column": ("return x.square().sum(1, keepdim=True) / 8 + bumps(x, centres) @ theta[:, None]", "shape [3]"),
    },
    ("hw1_energy", "log-density"): {
        "underflow": ("return -energies - (torch.exp(-energies).sum().log() + log_cell)", "stay in the logarithm"),
        "no cell": ("return -energies - torch.logsumexp(-energies, 0)", "log_cell"),
        "cell subtracted": ("return -energies - torch.logsumexp(-energies, 0) + log_cell", "log_cell"),
        "high energy likely": ("return energies - torch.logsumexp(energies, 0) - log_cell", "sign"),
        "sign of log Z": ("return -energies + torch.logsumexp(-energies, 0) + log_cell", ""),
        "a density": ("return torch.exp(-energies - torch.logsumexp(-energies, 0) - log_cell)", "log p is 0"),
    },
    ("hw1_energy", "slope"): {
        "mean": ("x = x.detach().requires_grad_()\nreturn torch.autograd.grad(E(x).mean(), x)[0]", "not the mean"),
        "minus": ("x = x.detach().requires_grad_()\nreturn -torch.autograd.grad(E(x).sum(), x)[0]", "the minus"),
        "caller's x": ("x.requires_grad_()\nreturn torch.autograd.grad(E(x).sum(), x)[0]", "caller's x"),
    },
    ("hw1_energy", "langevin-step"): {
        "uphill": ("return x + step * gradient + math.sqrt(2 * step) * noise", "has a minus"),
        "sqrt(step)": ("return x - step * gradient + math.sqrt(step) * noise", "where is the 2"),
        "no root": ("return x - step * gradient + 2 * step * noise", "square root"),
        "half a drift": ("return x - 0.5 * step * gradient + math.sqrt(2 * step) * noise", "0.98"),
    },
    ("hw1_energy", "metropolis"): {
        "upside down": ("return torch.where((u.log() < E_proposal - E_x)[:, None], proposal, x)", "upside down"),
        "greedy": ("return torch.where((E_proposal < E_x)[:, None], proposal, x)", "sometimes a chain must go up"),
        "always": ("return proposal", "rejects, and stays"),
        "NaN accepted": ("return torch.where((u.log() >= E_x - E_proposal)[:, None], x, proposal)", "NaN"),
        "rejected to zero": ("return (u.log() < E_x - E_proposal)[:, None] * proposal", None),
        "clamped exponent missing": ("return torch.where((u > torch.exp(E_x - E_proposal))[:, None], proposal, x)", ""),
    },
    ("hw1_energy", "gap"): {
        "turned round": ("return E(samples.detach()).mean() - E(x).mean()", "avoid the data"),
        "through the samples": ("return E(x).mean() - E(samples).mean()", "held fixed"),
        "data alone": ("return E(x).mean()", "= -10"),
        "sums": ("return E(x).sum() - E(samples.detach()).sum()", "= -10"),
        "no mean": ("return E(x) - E(samples.detach())", "scalar"),
    },
    ("hw2_flows", "base-log-prob"): {
        "no factor 1/2": ("return -z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)", "factor 1/2"),
        "no constant": ("return -0.5 * z.square().sum(1)", "constant"),
        "constant once": ("return -0.5 * z.square().sum(1) - 0.5 * math.log(2 * math.pi)", "each component"),
        "no sum": ("return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)", "sum over components"),
        "sum over the batch": ("return (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(0)", "shape [3]"),
    },
    ("hw2_flows", "exp-log-prob"): {
        "sign": ("z = x.log()\nreturn (-0.5 * z**2 - 0.5 * math.log(2 * math.pi) + z).sum(1)", "sign of the inverse"),
        "no volume": ("z = x.log()\nreturn (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1)", "stretching"),
        "no factor 1/2": ("z = x.log()\nreturn (-z**2 - 0.5 * math.log(2 * math.pi) - z).sum(1)", "at x = e"),
        "volume of one component": (
            "z = x.log()\nreturn (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1) - z[:, 0]", "two components"),
    },
    ("hw2_flows", "affine-log-prob"): {
        "sign": ("""
z = torch.linalg.solve(A, (x - b).T).T
return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1) + torch.linalg.slogdet(A).logabsdet""", "sign of the inverse"),
        "transposed": ("""
z = (x - b) @ torch.linalg.inv(A)
return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1) - torch.linalg.slogdet(A).logabsdet""", "points are rows"),
        "no absolute value": ("""
z = torch.linalg.solve(A, (x - b).T).T
return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1) - torch.det(A).log()""", "negative determinant"),
        "shift the wrong way": ("""
z = torch.linalg.solve(A, (x + b).T).T
return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1) - torch.linalg.slogdet(A).logabsdet""", "must not change"),
    },
    ("hw2_flows", "compose"): {
        "all volumes at x": ("""
ladj = sum((step(x)[1] for step in steps), x.new_zeros(len(x)))
for step in steps:
    x = step(x)[0]
return x, ladj""", "the place where it starts"),
        "last volume": ("ladj = x.new_zeros(len(x))\nfor step in steps:\n    x, ladj = step(x)\nreturn x, ladj", "the last step"),
        "reversed": ("""
ladj = x.new_zeros(len(x))
for step in reversed(steps):
    x, change = step(x)
    ladj = ladj + change
return x, ladj""", "turned round"),
        "subtracted": ("""
ladj = x.new_zeros(len(x))
for step in steps:
    x, change = step(x)
    ladj = ladj - change
return x, ladj""", "4.099"),
        "summed over the batch": ("""
ladj = 0.0
for step in steps:
    x, change = step(x)
    ladj = ladj + change.sum()
return x, ladj""", "one number for each item"),
    },
    ("hw2_flows", "planar-forward"): {
        "no derivative": ("h = torch.tanh(x @ w + b)\nreturn x + h[:, None] * u, (1 + 0 * h + u @ w).abs().log()", "tanh'"),
        "tanh for its derivative": ("h = torch.tanh(x @ w + b)\nreturn x + h[:, None] * u, (1 + h * (u @ w)).abs().log()", "log 2"),
        "sign": ("h = torch.tanh(x @ w + b)\nreturn x + h[:, None] * u, -(1 + (1 - h**2) * (u @ w)).abs().log()", "sign of"),
        "no absolute value": ("h = torch.tanh(x @ w + b)\nreturn x + h[:, None] * u, (1 + (1 - h**2) * (u @ w)).log()", "absolute"),
        "u and w exchanged": ("h = torch.tanh(x @ u + b)\nreturn x + h[:, None] * w, (1 + (1 - h**2) * (u @ w)).abs().log()", ""),
        "not the logarithm": ("h = torch.tanh(x @ w + b)\nreturn x + h[:, None] * u, (1 + (1 - h**2) * (u @ w)).abs()", "log 2"),
        "b forgotten": ("h = torch.tanh(x @ w)\nreturn x + h[:, None] * u, (1 + (1 - h**2) * (u @ w)).abs().log()", None),
    },
    ("hw2_flows", "constrain"): {
        "length for its square": ("k = w @ u\nreturn u + (torch.nn.functional.softplus(k) - 1 - k) * w / w.norm()", "square"),
        "not normalized": ("k = w @ u\nreturn u + (torch.nn.functional.softplus(k) - 1 - k) * w", "not normalized"),
        "along u": ("k = w @ u\nreturn u * (torch.nn.functional.softplus(k) - 1) / k", "along w only"),
        "no minus one": ("k = w @ u\nreturn u + (torch.nn.functional.softplus(k) - k) * w / (w @ w)", "-0.437"),
        "unchanged where allowed": (
            "k = w @ u\nreturn u if k > -1 else u + (torch.nn.functional.softplus(k) - 1 - k) * w / (w @ w)", None),
    },
    ("hw2_flows", "planar-inverse"): {
        "adds the push": ("return z + torch.tanh(z @ w + b)[:, None] * u", "subtracts"),
        "one step instead of a solution": ("return z - torch.tanh(z @ w + b)[:, None] * u", "expected"),
        "interval without the absolute value": ("""
k, c = w @ u, z @ w + b
low, high = c - k, c
for _ in range(50):
    middle = 0.5 * (low + high)
    below = middle + k * torch.tanh(middle) < c
    low, high = torch.where(below, middle, low), torch.where(below, high, middle)
return z - torch.tanh(low)[:, None] * u""", "k = -0.9"),
        "b forgotten at the end": ("""
k, c = w @ u, z @ w + b
low, high = c - k.abs(), c + k.abs()
for _ in range(50):
    middle = 0.5 * (low + high)
    below = middle + k * torch.tanh(middle) < c
    low, high = torch.where(below, middle, low), torch.where(below, high, middle)
return z - torch.tanh(low + b)[:, None] * u""", None),
    },
    ("hw2_flows", "mass"): {
        "no volume": ("""
x, area = grid_2d(limit, points)
z = x + torch.tanh(x @ w + b)[:, None] * u
return ((-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1).exp().sum() * area).item()""", "Is ladj there"),
        "volume the wrong way": ("""
x, area = grid_2d(limit, points)
h = torch.tanh(x @ w + b)
log_p = (-0.5 * (x + h[:, None] * u) ** 2 - 0.5 * math.log(2 * math.pi)).sum(1)
return ((log_p - (1 + (1 - h**2) * (u @ w)).abs().log()).exp().sum() * area).item()""", "right sign"),
        "no area": ("""
x, area = grid_2d(limit, points)
return (-0.5 * x**2 - 0.5 * math.log(2 * math.pi)).sum(1).exp().sum().item()""", "area of a cell"),
        "always one": ("return 1.0", None),
        "no absolute value": ("""
x, area = grid_2d(limit, points)
h = torch.tanh(x @ w + b)
p = (-0.5 * (x + h[:, None] * u) ** 2 - 0.5 * math.log(2 * math.pi)).sum(1).exp() * (1 + (1 - h**2) * (u @ w))
return (p.sum() * area).item()""", None),
    },
    ("hw3_coupling", "affine-forward"): {
        "sign": ("a, c = x.chunk(2, 1)\nreturn torch.cat([a, c * s.exp() + t], 1), -s.sum(1)", "sign of the inverse"),
        "no sum": ("a, c = x.chunk(2, 1)\nreturn torch.cat([a, c * s.exp() + t], 1), s", "sum over the components"),
        "sum over the batch": ("a, c = x.chunk(2, 1)\nreturn torch.cat([a, c * s.exp() + t], 1), s.sum()", "each item"),
        "mean": ("a, c = x.chunk(2, 1)\nreturn torch.cat([a, c * s.exp() + t], 1), s.mean(1)", "not their mean"),
        "no exp": ("a, c = x.chunk(2, 1)\nreturn torch.cat([a, c * s + t], 1), s.sum(1)", "exp is missing"),
        "sum of exp": ("a, c = x.chunk(2, 1)\nreturn torch.cat([a, c * s.exp() + t], 1), s.exp().sum(1)", "sum of s itself"),
        "wrong half": ("a, c = x.chunk(2, 1)\nreturn torch.cat([a * s.exp() + t, c], 1), s.sum(1)", "first half must stay"),
        "halves exchanged": ("a, c = x.chunk(2, 1)\nreturn torch.cat([c * s.exp() + t, a], 1), s.sum(1)", "first half must stay"),
    },
    ("hw3_coupling", "affine-inverse"): {
        "sign": ("a, c = z.chunk(2, 1)\nreturn torch.cat([a, (c - t) * torch.exp(-s)], 1), s.sum(1)", "sign of forward"),
        "scale first": ("a, c = z.chunk(2, 1)\nreturn torch.cat([a, c * torch.exp(-s) - t], 1), -s.sum(1)", "subtract t first"),
        "scale not undone": ("a, c = z.chunk(2, 1)\nreturn torch.cat([a, (c - t) * s.exp()], 1), -s.sum(1)", "= 2"),
        "wrong half": ("a, c = z.chunk(2, 1)\nreturn torch.cat([(a - t) * torch.exp(-s), c], 1), -s.sum(1)", "first half"),
    },
    ("hw3_coupling", "coupling"): {
        "net reads the changed half": ("""
a, c = x.chunk(2, 1)
kept, changed = (c, a) if flip else (a, c)
s, t = net(changed)
changed = changed * s.exp() + t
return torch.cat([changed, kept] if flip else [kept, changed], 1), s.sum(1)""", "the half that it changes"),
        "flip the wrong way": ("""
a, c = x.chunk(2, 1)
kept, changed = (a, c) if flip else (c, a)
s, t = net(kept)
changed = changed * s.exp() + t
return torch.cat([kept, changed] if flip else [changed, kept], 1), s.sum(1)""", "without flip"),
        "flip ignored": ("""
a, c = x.chunk(2, 1)
s, t = net(a)
return torch.cat([a, c * s.exp() + t], 1), s.sum(1)""", "with flip"),
        "left exchanged": ("""
a, c = x.chunk(2, 1)
kept, changed = (c, a) if flip else (a, c)
s, t = net(kept)
return torch.cat([kept, changed * s.exp() + t], 1), s.sum(1)""", "old places"),
        "no exp": ("""
a, c = x.chunk(2, 1)
kept, changed = (c, a) if flip else (a, c)
s, t = net(kept)
changed = changed * s + t
return torch.cat([changed, kept] if flip else [kept, changed], 1), s.sum(1)""", "exp is missing"),
        "mean": ("""
a, c = x.chunk(2, 1)
kept, changed = (c, a) if flip else (a, c)
s, t = net(kept)
changed = changed * s.exp() + t
return torch.cat([changed, kept] if flip else [kept, changed], 1), s.mean(1)""", "not their mean"),
        "sign": ("""
a, c = x.chunk(2, 1)
kept, changed = (c, a) if flip else (a, c)
s, t = net(kept)
changed = changed * s.exp() + t
return torch.cat([changed, kept] if flip else [kept, changed], 1), -s.sum(1)""", "sign of the inverse"),
        "components reversed": ("""
v = x.flip(1) if flip else x
a, c = v.chunk(2, 1)
s, t = net(a)
v = torch.cat([a, c * s.exp() + t], 1)
return (v.flip(1) if flip else v), s.sum(1)""", None),
    },
    ("hw3_coupling", "masked"): {
        "wrong half": ("return (1 - mask) * x + mask * (x * s.exp() + t), (mask * s).sum(1)", "turned round"),
        "all s in the volume": ("return mask * x + (1 - mask) * (x * s.exp() + t), s.sum(1)", "must not enter"),
        "kept s in the volume": ("return mask * x + (1 - mask) * (x * s.exp() + t), (mask * s).sum(1)", "instead of"),
        "kept scaled": ("return x * s.exp() + t, ((1 - mask) * s).sum(1)", "expected (1, 5, 10)"),
        "no sum": ("return mask * x + (1 - mask) * (x * s.exp() + t), (1 - mask) * s", "one number for each item"),
        "no exp": ("return mask * x + (1 - mask) * (x * s + t), ((1 - mask) * s).sum(1)", "exp is missing"),
        "mean": ("return mask * x + (1 - mask) * (x * s.exp() + t), ((1 - mask) * s).mean(1)", "not a mean"),
        "mean of the changed": ("return mask * x + (1 - mask) * (x * s.exp() + t), s[:, mask == 0].mean(1)", "not a mean"),
    },
    ("hw3_coupling", "encode"): {
        "no turns": ("""
(a, c), ladj = x.chunk(2, 1), x.new_zeros(len(x))
for net in nets:
    s, t = net(a)
    c, ladj = c * s.exp() + t, ladj + s.sum(1)
return torch.cat([a, c], 1), ladj""", "both have kept"),
        "begins wrongly": ("""
halves, ladj = list(x.chunk(2, 1)), x.new_zeros(len(x))
for i, net in enumerate(nets):
    kept, changed = 1 - i % 2, i % 2
    s, t = net(halves[kept])
    halves[changed], ladj = halves[changed] * s.exp() + t, ladj + s.sum(1)
return torch.cat(halves, 1), ladj""", "begin wrongly"),
        "last volume": ("""
halves = list(x.chunk(2, 1))
for i, net in enumerate(nets):
    s, t = net(halves[i % 2])
    halves[1 - i % 2] = halves[1 - i % 2] * s.exp() + t
return torch.cat(halves, 1), s.sum(1)""", "add up"),
        "nets reversed": ("""
halves, ladj = list(x.chunk(2, 1)), x.new_zeros(len(x))
for i, net in enumerate(nets[::-1]):
    s, t = net(halves[i % 2])
    halves[1 - i % 2], ladj = halves[1 - i % 2] * s.exp() + t, ladj + s.sum(1)
return torch.cat(halves, 1), ladj""", "wrong order"),
        "left exchanged": ("""
(a, c), ladj = x.chunk(2, 1), x.new_zeros(len(x))
for net in nets:
    s, t = net(a)
    a, c, ladj = c * s.exp() + t, a, ladj + s.sum(1)
return torch.cat([a, c], 1), ladj""", None),
    },
    ("hw3_coupling", "decode"): {
        "first one first": ("""
halves, ladj = list(z.chunk(2, 1)), z.new_zeros(len(z))
for i, net in enumerate(nets):
    s, t = net(halves[i % 2])
    halves[1 - i % 2], ladj = (halves[1 - i % 2] - t) * torch.exp(-s), ladj - s.sum(1)
return torch.cat(halves, 1), ladj""", "undone first"),
        "numbered anew": ("""
halves, ladj = list(z.chunk(2, 1)), z.new_zeros(len(z))
for i, net in enumerate(reversed(nets)):
    s, t = net(halves[i % 2])
    halves[1 - i % 2], ladj = (halves[1 - i % 2] - t) * torch.exp(-s), ladj - s.sum(1)
return torch.cat(halves, 1), ladj""", "do not count anew"),
        "sign": ("""
halves, ladj = list(z.chunk(2, 1)), z.new_zeros(len(z))
for i, net in reversed(list(enumerate(nets))):
    s, t = net(halves[i % 2])
    halves[1 - i % 2], ladj = (halves[1 - i % 2] - t) * torch.exp(-s), ladj + s.sum(1)
return torch.cat(halves, 1), ladj""", "sign of the other direction"),
        "scale first": ("""
halves, ladj = list(z.chunk(2, 1)), z.new_zeros(len(z))
for i, net in reversed(list(enumerate(nets))):
    s, t = net(halves[i % 2])
    halves[1 - i % 2], ladj = halves[1 - i % 2] * torch.exp(-s) - t, ladj - s.sum(1)
return torch.cat(halves, 1), ladj""", "subtract t first"),
        "the way there": ("""
halves, ladj = list(z.chunk(2, 1)), z.new_zeros(len(z))
for i, net in reversed(list(enumerate(nets))):
    s, t = net(halves[i % 2])
    halves[1 - i % 2], ladj = halves[1 - i % 2] * s.exp() + t, ladj - s.sum(1)
return torch.cat(halves, 1), ladj""", "goes on to the latent"),
        "mean": ("""
halves, ladj = list(z.chunk(2, 1)), z.new_zeros(len(z))
for i, net in reversed(list(enumerate(nets))):
    s, t = net(halves[i % 2])
    halves[1 - i % 2], ladj = (halves[1 - i % 2] - t) * torch.exp(-s), ladj - s.mean(1)
return torch.cat(halves, 1), ladj""", "the sum over"),
        "nets reversed, numbers kept": ("""
halves, ladj = list(z.chunk(2, 1)), z.new_zeros(len(z))
for i, net in reversed(list(enumerate(reversed(nets)))):
    s, t = net(halves[i % 2])
    halves[1 - i % 2], ladj = (halves[1 - i % 2] - t) * torch.exp(-s), ladj - s.sum(1)
return torch.cat(halves, 1), ladj""", "two different nets"),
    },
    ("hw3_coupling", "nll"): {
        "likelihood": ("return (-0.5 * (z**2).sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi) + ladj).mean()", "negative"),
        "sign of ladj": ("return (0.5 * (z**2).sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi) + ladj).mean()", "wrong sign"),
        "no factor 1/2": ("return ((z**2).sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi) - ladj).mean()", "factor 1/2"),
        "no constant": ("return (0.5 * (z**2).sum(1) - ladj).mean()", "constant"),
        "constant once": ("return (0.5 * (z**2).sum(1) + 0.5 * math.log(2 * math.pi) - ladj).mean()", "each component"),
        "sum": ("return (0.5 * (z**2).sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi) - ladj).sum()", "not a sum"),
        "no mean": ("return 0.5 * (z**2).sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi) - ladj", "scalar"),
        "no ladj": ("return (0.5 * (z**2).sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi)).mean()", "ladj is missing"),
        "sum of all squares": ("return (0.5 * (z**2).sum() + 0.5 * z.shape[1] * math.log(2 * math.pi) - ladj).mean()", "sum(1)"),
        "mean of squares": ("return (0.5 * (z**2).mean(1) + 0.5 * z.shape[1] * math.log(2 * math.pi) - ladj).mean()", "no mean over"),
        "size of the batch": ("return (0.5 * (z**2).sum(1) + 0.5 * len(z) * math.log(2 * math.pi) - ladj).mean()", "z.shape[1]"),
    },
}

# the same in other words
RIGHT = {
    ("hw1_energy", "energy"): "return 0.5 * ((x / 2) ** 2).sum(-1) + torch.einsum('bk,k->b', bumps(x, centres), theta)",
    ("hw1_energy", "log-density"): "return torch.log_softmax(-energies, 0) - log_cell",
    ("hw1_energy", "slope"): "return torch.func.grad(lambda v: E(v).sum())(x.detach())",
    ("hw1_energy", "langevin-step"): "return x + (2 * step) ** 0.5 * noise - gradient * step",
    ("hw1_energy", "metropolis"): """
states = x.clone()
for i in range(len(x)):
    fall = float(E_x[i] - E_proposal[i])
    if fall >= 0 or (fall < 0 and u[i] < math.exp(fall)):
        states[i] = proposal[i]
return states""",
    ("hw1_energy", "gap"): """
with torch.no_grad():
    samples = samples.clone()
return (E(x).sum() - E(samples).sum()) / len(x)""",
    ("hw2_flows", "base-log-prob"): "return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)",
    ("hw2_flows", "exp-log-prob"): "return -(0.5 * torch.log(x) ** 2 + torch.log(x * (2 * math.pi) ** 0.5)).sum(dim=-1)",
    ("hw2_flows", "affine-log-prob"): """
inverse = torch.inverse(A)
z = torch.einsum('ij,bj->bi', inverse, x - b)
return base_log_prob(z) + inverse.det().abs().log()""",
    ("hw2_flows", "compose"): """
if not steps:
    return x, torch.zeros(len(x), dtype=x.dtype)
z, first = steps[0](x)
z, rest = compose(z, steps[1:])
return z, first + rest""",
    ("hw2_flows", "planar-forward"): """
a = (x * w).sum(1) + b
slope = torch.cosh(a) ** -2
return x + torch.outer(torch.tanh(a), u), torch.log(torch.abs(1 + slope * torch.dot(u, w)))""",
    ("hw2_flows", "constrain"): """
k = torch.dot(w, u)
return u + (torch.log1p(k.exp()) - 1 - k) / w.norm() ** 2 * w""",
    ("hw2_flows", "planar-inverse"): """
a, k, c = z @ w + b, float(w @ u), z @ w + b
low, high = c - abs(k) - 1e-6, c + abs(k) + 1e-6
for _ in range(200):
    right = a + k * torch.tanh(a) > c
    high[right], low[~right] = a[right], a[~right]
    a = (low + high) / 2
return z - torch.outer(torch.tanh(a), u)""",
    ("hw2_flows", "mass"): """
x, area = grid_2d(limit, points)
z, ladj = planar_forward(x.double(), u.double(), w.double(), b)
return float(torch.logsumexp(base_log_prob(z) + ladj, 0).exp()) * area""",
    ("hw3_coupling", "affine-forward"): """
z = x.clone()
z[:, x.shape[1] // 2:] *= s.exp()
z[:, x.shape[1] // 2:] += t
return z, torch.einsum('bd->b', s)""",
    ("hw3_coupling", "affine-inverse"): """
half = z.size(1) // 2
return torch.hstack([z[:, :half], (z[:, half:] - t) / s.exp()]), (-s).sum(dim=-1)""",
    ("hw3_coupling", "coupling"): """
half = x.shape[1] // 2
if flip:
    z, ladj = coupling(x.roll(half, 1), net, False)
    return z.roll(half, 1), ladj
return affine_forward(x, *net(x[:, :half]))""",
    ("hw3_coupling", "masked"): """
changed = mask < 0.5
return torch.where(changed, x * s.exp() + t, x), torch.where(changed, s, torch.zeros_like(s)).sum(1)""",
    ("hw3_coupling", "encode"): """
ladj = torch.zeros(len(x), dtype=x.dtype)
for number in range(len(nets)):
    x, more = coupling(x, nets[number], number % 2 == 1)
    ladj += more
return x, ladj""",
    ("hw3_coupling", "decode"): """
half, ladj = z.shape[1] // 2, 0 * z.sum(1)
for i in range(len(nets) - 1, -1, -1):
    v = z.roll(half, 1) if i % 2 else z
    v, more = affine_inverse(v, *nets[i](v[:, :half]))
    z, ladj = v.roll(half, 1) if i % 2 else v, ladj + more
return z, ladj""",
    ("hw3_coupling", "nll"): "return -(torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + ladj).sum() / len(z)",
}

CASES = [pytest.param(*task, body, told, id=f"{task[0][:3]}-{task[1]}: {mistake}")
         for task, mistakes in WRONG.items() for mistake, (body, told) in mistakes.items()]


@pytest.mark.parametrize("stem, task, body, told", CASES)
def test_a_typical_mistake_is_refused_and_named(stem, task, body, told):
    "`told` is what the student reads; `None`: only the hidden check, on other numbers, can see it."
    shown, refused = tried(stem, task, body)
    assert refused and refused.startswith(("AssertionError", "RuntimeError")), refused
    if told is not None:
        assert "not yet right" in shown and told in shown, shown


@pytest.mark.parametrize("stem, task", [pytest.param(*t, id=f"{t[0][:3]}-{t[1]}") for t in RIGHT])
def test_another_right_solution_passes(stem, task):
    shown, refused = tried(stem, task, RIGHT[stem, task])
    assert "public check passed" in shown and refused is None, (shown, refused)


def solutions():
    return [(stem, name) for stem in HOMEWORKS for name, c in cells(stem).items() if c.metadata.nbgrader.solution]


TRAININGS = [("hw1_energy", "learn"), ("hw3_coupling", "train")]


def test_every_task_has_its_mistakes_and_another_solution():
    assert set(solutions()) == set(WRONG) | set(TRAININGS) == set(RIGHT) | set(TRAININGS)


@pytest.mark.parametrize("stem, task", solutions())
def test_an_unsolved_task_says_so(stem, task):
    shown, refused = tried(stem, task, "raise NotImplementedError()")
    assert "not solved yet" in shown and refused.startswith("NotImplementedError")


@pytest.mark.parametrize("stem, task", [t for t in solutions() if t not in TRAININGS])
def test_the_points_of_a_task_need_no_other_task(stem, task):
    "The teacher's solution passes although all other tasks are unsolved."
    space, kept = {"__name__": "homework"}, cells(stem)
    for name, cell in kept.items():
        if cell.metadata.nbgrader.solution and name != task:
            cell.source = with_body(cell.source, "raise NotImplementedError()")
        if name == f"{task}-check":
            return exec(compile(cell.source.split(HIDDEN)[1], name, "exec"), space)
        if name.endswith("-check"):
            cell.source = cell.source.split("with visible(")[0].split(HIDDEN)[0]
        if not name.startswith(("picture", "yours")):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(cell.source, name, "exec"), space)
            if name == task and f"{task}-check" in kept:  # adapters of this task's own check
                adapters = kept[f"{task}-check"].source.split("with visible(")[0].split(HIDDEN)[0]
                exec(compile(adapters, name, "exec"), space)


def judge_of(stem, task):
    "The hidden check of a training, with one draw of arguments."
    space, source = up_to(stem, task)
    shown, hidden = source.split(HIDDEN)
    exec(compile(shown.split("with visible(")[0], task, "exec"), space)
    with recording() as checks:
        exec(compile(hidden, task, "exec"), space)
    (check,) = checks
    return check, check.arguments([1])[0]


def test_the_judge_of_weights():
    check, arguments = judge_of("hw1_energy", "learn")
    zeros = torch.zeros(81)
    assert "KL" in check.wrong(zeros, arguments)  # nothing learned
    dents = torch.exp(-2 * torch.cdist(arguments[0], arguments[1]).square()).mean(0)
    assert "KL" in check.wrong(20 * dents, arguments)  # the wrong sign
    assert "81" in check.wrong(torch.zeros(80), arguments)
    assert check.wrong(torch.full((81,), math.nan), arguments) == "expected finite numbers"


def forged(data, points, noise, steps, seed):
    "A kernel density with latents of the identity: likely and normalized, but no flow."
    near = torch.logsumexp(-0.5 * torch.cdist(points, data).square() / 0.15**2, 1)
    log_p = near - math.log(len(data) * 2 * math.pi * 0.15**2)
    ladj = log_p + 0.5 * points.square().sum(1) + math.log(2 * math.pi)
    return points, ladj, data[:1000]


def test_the_judge_of_a_flow():
    check, arguments = judge_of("hw3_coupling", "train")
    data, points, noise = arguments[:3]
    same = points, torch.zeros(len(points)), noise
    assert "unseen data" in check.wrong(same, arguments)  # untrained
    assert "volume of the map" in check.wrong(forged(*arguments), arguments)  # likely, and no flow
    assert "integrates" in check.wrong((points, torch.ones(len(points)), noise), arguments)
    assert "expected latents" in check.wrong((points, noise), arguments)


BODIES = {
    ("hw1_energy", "learn"): ("theta = theta - rate *", {
        "up instead of down": "theta = theta + rate *",
    }),
    ("hw3_coupling", "train"): ("- ladj).mean()", {
        "no ladj": ").mean()",
        "uphill": "- ladj).mean().neg()",
    }),
}
SLOW = [pytest.param(*t, old, new, id=f"{t[1]}: {name}") for t, (old, all_) in BODIES.items() for name, new in all_.items()]


@pytest.mark.parametrize("stem, task, old, new", SLOW)
def test_a_wrong_training_is_refused(stem, task, old, new):
    source = cells(stem)[task].source
    body = textwrap.dedent(source.split(BEGIN)[1].split(END)[0])
    assert old in body
    shown, refused = tried(stem, task, body.replace(old, new))
    assert "not yet right" in shown and refused.startswith("AssertionError"), (shown, refused)


@pytest.mark.parametrize("stem", HOMEWORKS)
def test_the_anatomy(stem):
    "Checks follow their task, grade ids are unique, every solution leaves valid Python, all imports are in one cell."
    notebook = nbformat.read(ROOT / "nbs" / f"{stem}.ipynb", as_version=4)
    told = [c.metadata.nbgrader for c in notebook.cells]
    ids = [m.grade_id for m in told]
    assert len(ids) == len(set(ids)) and all(i.startswith(f"{stem[:3]}-") for i in ids)
    for cell, after in zip(notebook.cells, notebook.cells[1:]):
        mine, next_one = cell.metadata.nbgrader, after.metadata.nbgrader
        assert mine.schema_version == 3 and not mine.task and mine.locked is not mine.solution
        if mine.solution and cell.cell_type == "code":
            assert next_one.grade_id == f"{mine.grade_id}-check" and next_one.grade and next_one.points > 0
            assert "TODO" in cell.source and "Approach" in cell.source and "Example" in cell.source and "Hint" in cell.source
            assert len(ast.parse(with_body(cell.source, "raise NotImplementedError()")).body) == 1
        if mine.grade and not mine.solution:
            assert f'with visible("{mine.grade_id.removesuffix("-check")}", points={mine.points})' in cell.source
            assert HIDDEN in cell.source and "### END HIDDEN TESTS" in cell.source
    imports = [c.metadata.nbgrader.grade_id for c in notebook.cells
               if c.cell_type == "code" and any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(ast.parse(c.source)))]
    assert imports == [f"{stem[:3]}-imports"]
    words = [c for c in notebook.cells if c.cell_type == "markdown" and c.metadata.nbgrader.grade]
    assert len(words) == 1 and "=== BEGIN MARK SCHEME ===" in words[0].source and "=== END MARK SCHEME ===" in words[0].source
    assert 5 <= len([m for m in told if m.grade and not m.solution]) <= 8
