"""Homeworks 4 to 6: typical mistakes are told and refused, other right ways pass. No kernel: cells are executed as text."""
import contextlib
import re

import matplotlib
import nbformat
import pytest
import torch
from conftest import ROOT

matplotlib.use("Agg")
STEMS = {"hw4": "hw4_glow", "hw5": "hw5_hybrid", "hw6": "hw6_dense"}
GIVEN = {  # the cells that the checks need
    "hw4": ["imports", "oracle", "photo"],
    "hw5": ["imports", "data", "net"],
    "hw6": ["imports", "names"],
}


class Sheet:
    "The cells of a homework by grade_id, and what its given cells define."

    def __init__(self, short):
        notebook = nbformat.read(ROOT / "nbs" / f"{STEMS[short]}.ipynb", as_version=4)
        self.cells = {c.metadata.nbgrader.grade_id: c for c in notebook.cells}
        self.given = {"seed": 0}
        torch.manual_seed(0)
        for name in GIVEN[short]:
            exec(self.cells[f"{short}-{name}"].source, self.given)

    def told(self, task, solution):
        "What the visible check says of a solution; None if it is content."
        visible, _ = self.check(task)
        try:
            self.run(solution, visible)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def refused(self, task, solution):
        "Whether the hidden check refuses a solution, or it fails there."
        visible, hidden = self.check(task)
        adapters = visible.split("with visible(")[0]
        try:
            self.run(solution, adapters + hidden)
        except Exception:
            return True
        return False

    def check(self, task):
        source = self.cells[f"{task}-check"].source
        found = re.fullmatch(r"(.*)### BEGIN HIDDEN TESTS\n(.*)\n### END HIDDEN TESTS", source, re.S)
        return found.groups()

    def run(self, *sources):
        names = self.given | {"visible": lambda task, points: contextlib.nullcontext()}
        torch.manual_seed(1)
        for source in sources:
            exec(source, names)


@pytest.fixture(scope="module")
def sheets():
    made = {}
    return lambda short: made.setdefault(short, Sheet(short))


# Task, what stands in the solution, what a student wrote instead, and words that the visible check must say.
MISTAKES = [
    ("hw4-squeeze", "permute(0, 1, 3, 5, 2, 4)", "permute(0, 3, 5, 1, 2, 4)", "not c + C"),
    ("hw4-squeeze", "permute(0, 1, 3, 5, 2, 4)", "permute(0, 1, 5, 3, 2, 4)", "row by row"),
    ("hw4-squeeze", ".permute(0, 1, 3, 5, 2, 4)", "", "permute before the last reshape"),
    ("hw4-squeeze", "permute(0, 1, 4, 2, 5, 3)", "permute(0, 1, 4, 3, 5, 2)", "inverse"),
    ("hw4-actnorm", "-(x.shape[2] * x.shape[3] * self.log_scale.sum())", "-self.log_scale.sum()", "H*W is missing"),
    ("hw4-actnorm", "return z, -(x", "return z, (x", "sign of ladj"),
    ("hw4-actnorm", ".expand(len(x))", "", "one number for each image"),
    ("hw4-actnorm", ".clamp_min(1e-3)", "", "clamp_min"),
    ("hw4-actnorm", "torch.exp(-self.log_scale)", "torch.exp(self.log_scale)", "deviation 1"),
    ("hw4-weight", "lu.tril(-1)", "lu.tril()", "not read"),
    ("hw4-weight", "sign * log_s.exp()", "log_s.exp()", "signs"),
    ("hw4-weight", "log_s.exp()", "log_s", "exp"),
    ("hw4-weight", "p @ lower @ upper", "p @ upper @ lower", "P, then L"),
    ("hw4-weight", "p @ lower @ upper", "lower @ upper @ p", "left"),
    ("hw4-mix", "x.shape[2] * x.shape[3] * log_s.sum()", "log_s.sum()", "factor H*W of the 1x1 convolution is missing"),
    ("hw4-mix", "return z, (x", "return z, -(x", "sign is wrong"),
    ("hw4-mix", "(x.shape[2] * x.shape[3]", "(x[0].numel()", "no factor for the channels"),
    ("hw4-mix", "ij,bjhw->bihw", "ji,bjhw->bihw", "W^T x"),
    ("hw4-unmix", "-(z.shape[2]", "(z.shape[2]", "sign is wrong"),
    ("hw4-unmix", "z.shape[2] * z.shape[3] * ", "", "factor H*W of the 1x1 convolution is missing"),
    ("hw4-unmix", "p.T @", "p @", "P^T"),
    ("hw4-leave", "a, b = h.chunk(2, 1)", "b, a = h.chunk(2, 1)", "exchanged"),
    ("hw4-leave", " - log_std - ", " - ", "-log_std is missing"),
    ("hw4-leave", " - log_std - ", " + log_std - ", "sign of log_std"),
    ("hw4-leave", " - 0.5 * math.log(2 * math.pi)", "", "constant"),
    ("hw4-leave", "each.sum((1, 2, 3))", "each.mean((1, 2, 3))", "sum, not mean"),
    ("hw4-bits", "- log_prob)", "+ log_prob)", "sign of log_prob"),
    ("hw4-bits", "(dims * math.log(2))", "dims", "nats"),
    ("hw4-bits", "dims * math.log(grey_levels) - log_prob", "-log_prob", "grey levels"),
    ("hw4-learn", "- pixels * torch", "- torch", "factor H*W is missing in the loss"),
    ("hw4-learn", "- pixels * torch", "+ pixels * torch", ""),
    ("hw4-learn", "return weight.detach()", "return torch.eye(x.shape[1])", "not there yet"),
    ("hw5-energy", "logsumexp(1)", "logsumexp(0)", "dim=1"),
    ("hw5-energy", "-logits", "logits", "sign is wrong"),
    ("hw5-energy", "logits.logsumexp(1)", "logits.exp().sum(1).log()", "overflows"),
    ("hw5-joint", "-logits.gather(1, y[:, None]).squeeze(1)", "-logits[:, y]", "its own class"),
    ("hw5-joint", "-logits.gather", "logits.gather", "sign of E(x, y)"),
    ("hw5-joint", "-logits.logsumexp(1) - joint", "joint + logits.logsumexp(1)", "not the reverse"),
    ("hw5-step", "x - step * slope", "x + step * slope", "uphill"),
    ("hw5-step", ".sum()", ".mean()", "B times too small"),
    ("hw5-step", "noise * xi", "(2 * step) ** 0.5 * xi", "sigma * xi"),
    ("hw5-step", "noise * xi).detach()", "noise * xi)", "detach"),
    ("hw5-restart", "fresh, states", "states, fresh", "wrong way round"),
    ("hw5-restart", "[:, None]", "", "along the columns"),
    ("hw5-loss", "+ gap", "- gap", "wrong sign"),
    ("hw5-loss", "mean() - logits", "mean() + logits", ""),
    ("hw5-loss", "sample_logits.logsumexp(1).mean()", "sample_logits.logsumexp(1).sum()", "not sums"),
    ("hw5-loss", "sample_logits.logsumexp", "sample_logits.detach().logsumexp", "do not detach"),
    ("hw5-loss", "logits.logsumexp(1).mean() - logits.logsumexp(1)", "logits.amax(1).mean() - logits.amax(1)", "worked example"),
    ("hw5-scores", "-sure", "sure", "upside down"),
    ("hw5-scores", "-logits.amax(1)", "logits.amax(1)", "upside down"),
    ("hw5-scores", "-logits.logsumexp(1)", "logits.logsumexp(1)", "upside down"),
    ("hw5-scores", "logits.logsumexp(1)", "logits.logsumexp(0)", "dim=1"),
    ("hw5-scores", "log_softmax(1)", "softmax(1)", "max softmax"),
    ("hw5-auroc", "anomalies[:, None] - inliers", "inliers - anomalies[:, None]", "upside down"),
    ("hw5-auroc", "(torch.sign(anomalies[:, None] - inliers) + 1) / 2", "(anomalies[:, None] > inliers).float()", "half a pair"),
    ("hw5-learn", "low.mean() - high.mean()", "high.mean() - low.mean()", "upside down"),
    ("hw5-learn", " + low.mean() - high.mean()", "", "is the gap trained"),
    ("hw6-posterior", "[:, 1]", "[:, 0]", "first channel"),
    ("hw6-posterior", "log_softmax(1)", "softmax(1).log()", "-inf"),
    ("hw6-posterior", "log_softmax(1)", "log_softmax(3)", "axis 1"),
    ("hw6-score", "- logits", "+ logits", "wrong sign"),
    ("hw6-score", "logits.logsumexp(1)", "logits.mean(1)", "log-SUM-exp"),
    ("hw6-score", "logits.logsumexp(1)", "logits.amax(1)", "log-SUM-exp"),
    ("hw6-score", "two.log_softmax(1)[:, 1]", "two.log_softmax(1)[:, 0]", "second head"),
    ("hw6-mean", "where.sum().clamp_min(1)", "where.numel()", "number of those"),
    ("hw6-mean", ".clamp_min(1)", "", "0"),
    ("hw6-mean", "torch.where(where, values, 0.0)", "(values * where)", "infinite"),
    ("hw6-loss", "(labels != VOID) & (labels != OUTLIER)", "labels != OUTLIER", "void"),
    ("hw6-loss", "mean(classes, inside)", "F.cross_entropy(logits, labels.where(labels < 200, 0))", "classes"),
    ("hw6-loss", "mean(classes, inside)", "classes.mean()", "only those with a class"),
    ("hw6-loss", "10 * beta * outlier", "beta * outlier", "10 beta"),
    ("hw6-loss", "10 * beta * outlier", "5 * beta * outlier", "OWN pixels"),
    ("hw6-loss", "mean(logits.logsumexp(1), outside)", "-mean(logits.logsumexp(1), outside)", "sign"),
    ("hw6-loss", "mean(logits.logsumexp(1), outside)", "mean(logits.logsumexp(1), inside)", "density"),
    ("hw6-loss", ".clamp_min(1)", "", "NaN"),
    ("hw6-loss", "mean(domain[:, 0], inside) + mean(domain[:, 1], outside)", "mean(domain[:, 1], inside) + mean(domain[:, 0], outside)", None),
    ("hw6-paste", "image, labels = image.clone(), labels.clone()", "pass", "clone"),
    ("hw6-paste", "(1 - cover) * image[:, *place] + cover * thing", "cover * image[:, *place] + (1 - cover) * thing", "upside down"),
    ("hw6-paste", "(1 - cover) * image[:, *place] + cover * thing", "thing", "whole rectangle"),
    ("hw6-paste", "labels[place][cover > 0] = VOID", "pass", "blended border"),
    ("hw6-paste", "cover > 0.5", "cover > 0", "blended border"),
    ("hw6-precision", "(anomaly == 0) | (anomaly == 1)", "anomaly >= 0", "void"),
    ("hw6-precision", "scores[anomaly == 1]", "scores[anomaly > 0]", "void"),
    ("hw6-precision", "len(judged) - torch.searchsorted(judged, positive)", "torch.searchsorted(judged, positive, right=True)", ""),
    ("hw6-precision", "torch.searchsorted(judged, positive)", "torch.searchsorted(judged, positive, right=True) + 1", "ties"),
    ("hw6-alarms", ">= threshold", "< threshold", "wrong side"),
    ("hw6-alarms", ">= threshold", "> threshold", "AT the threshold"),
    ("hw6-alarms", "anomaly == 0", "anomaly != 1", "void"),
    ("hw6-alarms", "anomaly == 1", "anomaly > 0", "void"),
    ("hw6-alarms", "descending=True", "descending=False", "expected"),
    ("hw6-learn", "(y != VOID) & (y != OUTLIER)", "y != OUTLIER", None),
    ("hw6-learn", "y == OUTLIER\n", "y >= OUTLIER\n", None),
    ("hw6-learn", "domain[inside, 0]", "domain[y != OUTLIER, 0]", None),
    ("hw6-learn", "+ beta * logits[outside]", "- beta * logits[outside]", None),
    ("hw6-learn", "-out[:, classes:]", "-out[:, classes:].flip(1)", None),
]


@pytest.mark.parametrize("task, right, wrong, words", MISTAKES)
def test_a_typical_mistake_is_told_and_refused(sheets, task, right, wrong, words):
    sheet = sheets(task[:3])
    before, begin, solution = sheet.cells[task].source.partition("### BEGIN SOLUTION")
    assert right in solution
    mistaken = before + begin + solution.replace(right, wrong, 1)
    assert words is None or words in (sheet.told(task, mistaken) or "content")
    assert sheet.refused(task, mistaken)


ON_STREETS = ["hw6-learn"]  # its visible check needs rendered streets; the notebook's own run shows it
TASKS = sorted({mistake[0] for mistake in MISTAKES})


@pytest.mark.parametrize("task", TASKS)
def test_the_solution_passes_and_the_stub_does_not(sheets, task):
    sheet = sheets(task[:3])
    solution = sheet.cells[task].source
    assert task in ON_STREETS or sheet.told(task, solution) is None
    assert not sheet.refused(task, solution)
    stub = re.sub(r"( *)### BEGIN SOLUTION.*?### END SOLUTION", r"\1raise NotImplementedError()", solution, flags=re.S)
    assert task in ON_STREETS or sheet.told(task, stub).startswith("NotImplementedError")
    assert sheet.refused(task, stub)


OTHERS = {
    "hw4-squeeze": """
class Squeeze:
    def forward(self, x):
        parts = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return torch.stack(parts, 2).flatten(1, 2)

    def inverse(self, z):
        return F.pixel_shuffle(z, 2)
""",
    "hw4-actnorm": """
class ActNorm(nn.Module):
    def initialize(self, x):
        scale, shift = torch.std_mean(x, (0, 2, 3))
        self.shift, self.log_scale = nn.Parameter(shift), nn.Parameter(scale.clamp_min(1e-3).log())

    def forward(self, x):
        b, _, h, w = x.shape
        place = (1, -1, 1, 1)
        z = (x - self.shift.view(place)) / self.log_scale.exp().view(place)
        return z, torch.full((b,), -h * w * self.log_scale.sum().item())
""",
    "hw4-weight": """
def plu_weight(p, lu, sign, log_s):
    n = lu.shape[0]
    lower, upper = torch.eye(n), torch.diag(sign * torch.exp(log_s))
    for i in range(n):
        for j in range(n):
            if i > j:
                lower[i, j] = lu[i, j]
            if i < j:
                upper[i, j] = lu[i, j]
    return p.matmul(lower.matmul(upper))
""",
    "hw4-mix": """
def mix_forward(x, weight, log_s):
    z = F.conv2d(x, weight[:, :, None, None])
    return z, torch.ones(len(x)) * (x[0, 0].numel() * log_s.sum())
""",
    "hw4-unmix": """
def mix_inverse(z, p, lu, sign, log_s):
    upper = torch.triu(lu, 1) + torch.diag(sign * log_s.exp())
    weight = p @ (torch.tril(lu, -1) + torch.eye(len(p))) @ upper
    x = F.conv2d(z, torch.linalg.inv(weight)[:, :, None, None])
    return x, torch.stack([-log_s.sum() * image[0].numel() for image in z])
""",
    "hw4-leave": """
def leave(h, mean, log_std):
    c = h.shape[1] // 2
    return h[:, :c], torch.distributions.Normal(mean, log_std.exp()).log_prob(h[:, c:]).sum(dim=(1, 2, 3))
""",
    "hw4-bits": """
def bits_per_dim(log_prob, dims, grey_levels):
    nats = -log_prob + dims * math.log(grey_levels)
    return nats / math.log(2) / dims
""",
    "hw5-energy": """
def energy(logits):
    top, _ = logits.max(dim=1)
    return -(top + torch.log(torch.exp(logits - top.unsqueeze(1)).sum(dim=1)))
""",
    "hw5-joint": """
def joint_and_conditional(logits, y):
    own = torch.stack([row[k] for row, k in zip(logits, y)])
    return -own, own - torch.logsumexp(logits, dim=1)
""",
    "hw5-step": """
def langevin_step(energy_of, x, xi, step, noise):
    moving = x.clone().detach().requires_grad_(True)
    value = energy_of(moving)
    slope = torch.autograd.grad(value, moving, torch.ones_like(value))[0]
    with torch.no_grad():
        return moving.sub(step * slope).add(xi, alpha=noise)
""",
    "hw5-restart": """
def restart(states, fresh, u, share):
    result = states.clone()
    result[u < share] = fresh[u < share]
    return result
""",
    "hw5-loss": """
def jem_loss(logits, y, sample_logits):
    own = logits[torch.arange(len(y)), y]
    return torch.logsumexp(sample_logits, 1).sum() / len(sample_logits) - own.mean()
""",
    "hw5-scores": """
def ood_scores(logits):
    top = logits.max(1).values
    total = torch.logsumexp(logits, 1)
    return {"energy": -total, "max logit": -top, "max softmax": total - top}
""",
    "hw5-auroc": """
def auroc(inliers, anomalies):
    won = sum((a > inliers).sum().item() + 0.5 * (a == inliers).sum().item() for a in anomalies)
    return won / (len(inliers) * len(anomalies))
""",
    "hw5-learn": """
def learn_jem(x, y):
    import densegen.energy.jem as ready

    model = ready.JEM(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 10)))
    chains = ReplayBuffer(500, (64,), reinit=0.05)
    learner = Learner(model, JointLoss(ContrastiveDivergence(Langevin(1.0, 0.01), 8, "buffer", chains, 0.1), 0.0))
    fit(learner, (x, y), steps=250, batch_size=50, lr=3e-3, clip=5.0)
    return [p.detach() for p in model.classifier.parameters()]
""",
    "hw6-posterior": """
def log_outlier(two):
    inside, foreign = two.unbind(1)
    return F.logsigmoid(foreign - inside)
""",
    "hw6-score": """
def hybrid_score(logits, two):
    inside, foreign = two[:, 0], two[:, 1]
    top = logits.max(1, keepdim=True).values
    return -F.softplus(inside - foreign) - top[:, 0] - (logits - top).exp().sum(1).log()
""",
    "hw6-mean": """
def mean_over(values, where):
    chosen = values[where]
    return chosen.mean() if len(chosen) else torch.zeros(())
""",
    "hw6-loss": """
def hybrid_loss(logits, two, labels, beta):
    known, foreign = labels < 254, labels == 254
    zero = 0.0 * (logits.sum() + two.sum())
    mean = lambda v: v.mean() if v.numel() else zero
    log_p, gap = logits.log_softmax(1), two[:, 1] - two[:, 0]
    own = log_p.gather(1, labels.clamp(max=logits.shape[1] - 1)[:, None])[:, 0]
    head = mean(F.softplus(gap)[known]) + mean(F.softplus(-gap)[foreign])
    density = (logits[:, 0] - log_p[:, 0])[foreign]
    return {"density": beta * mean(density), "outlier": 10 * beta * head, "classes": -mean(own[known])}
""",
    "hw6-paste": """
def paste_thing(image, labels, thing, cover, row, column):
    h, w = cover.shape
    below, right = image.shape[1] - row - h, image.shape[2] - column - w
    spread = lambda part: F.pad(part, (column, right, row, below))
    c = spread(cover)
    new = torch.where(c > 0, (1 - c) * image + c * spread(thing), image)
    marked = torch.where(c > 0.5, OUTLIER, torch.where(c > 0, VOID, labels))
    return new, marked
""",
    "hw6-precision": """
def average_precision(scores, anomaly):
    precisions = []
    for threshold in scores[anomaly == 1]:
        raised = (scores >= threshold) & (anomaly != 255)
        precisions.append(((anomaly == 1) & raised).sum().item() / raised.sum().item())
    return sum(precisions) / len(precisions)
""",
    "hw6-alarms": """
def false_alarms(scores, anomaly, recall):
    positive, ordinary = scores[anomaly == 1], scores[anomaly == 0]
    for threshold in sorted(set(positive.tolist()), reverse=True):
        if (positive >= threshold).double().mean().item() >= recall:
            return (ordinary >= threshold).double().mean().item()
""",
    "hw6-learn": """
def learn_heads(features, labels, classes):
    weight = torch.zeros(classes + 2, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes + 2, requires_grad=True)
    descent = torch.optim.SGD([weight, bias], lr=0.5, momentum=0.9)
    known, foreign = labels < 254, labels == 254
    for _ in range(200):
        inside, outside = (features[rows] @ weight.T + bias for rows in (known, foreign))
        head = F.softplus(inside[:, -1] - inside[:, -2]).mean() + F.softplus(outside[:, -2] - outside[:, -1]).mean()
        loss = F.cross_entropy(inside[:, :classes], labels[known]) + 0.3 * head
        loss = loss + 0.03 * outside[:, :classes].logsumexp(1).mean()
        descent.zero_grad()
        loss.backward()
        descent.step()
    return [weight.detach(), bias.detach()]
""",
    "hw4-learn": """
def learn_mixing(x):
    pixels = x.movedim(1, 0).flatten(1)
    return torch.linalg.inv(torch.linalg.cholesky(pixels @ pixels.T / pixels.shape[1]))
""",
}


@pytest.mark.parametrize("task", TASKS)
def test_another_right_way_passes(sheets, task):
    sheet = sheets(task[:3])
    assert task in ON_STREETS or sheet.told(task, OTHERS[task]) is None
    assert not sheet.refused(task, OTHERS[task])
