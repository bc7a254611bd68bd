"""Learning rates of transformers' schedulers, and of ReduceLROnPlateau over two series of losses.

Usage: python schedules.py > schedules.json
Needs: torch, transformers (the versions used are in the output).
"""
import json, math, warnings
import torch, transformers
from transformers.optimization import get_scheduler

warnings.filterwarnings("ignore")
BASE = 2e-4

# Name in transformers, its settings, ours (None: the name alone).
CASES = [
    ("linear", {}, None),
    ("cosine", {}, None),
    ("cosine_with_restarts", {}, {}),
    ("cosine_with_restarts", dict(num_cycles=3), dict(cycles=3)),
    ("polynomial", {}, {}),
    ("polynomial", dict(power=2.5, lr_end=1e-5), dict(power=2.5, end=1e-5)),
    ("constant", {}, None),
    ("constant_with_warmup", {}, None),
    ("inverse_sqrt", {}, {}),
    ("inverse_sqrt", dict(timescale=25), dict(timescale=25)),
    ("inverse_sqrt", dict(timescale=3), dict(timescale=3)),
    ("cosine_with_min_lr", dict(min_lr=3e-5), dict(min=dict(rate=3e-5))),
    ("cosine_with_min_lr", dict(min_lr_rate=0.25), dict(min=dict(ratio=0.25))),
    ("warmup_stable_decay", dict(num_decay_steps=12), dict(decay=dict(steps=12))),
    ("warmup_stable_decay", dict(num_decay_steps=12, decay_type="linear", min_lr_ratio=0.1), dict(decay=dict(steps=12), kind="linear", min_ratio=0.1)),
    ("warmup_stable_decay", dict(num_decay_steps=9, decay_type="1-sqrt", min_lr_ratio=0.2), dict(decay=dict(ratio=0.2), kind="1-sqrt", min_ratio=0.2)),
]
# Ours, the number of steps that transformers is given (math.ceil(total * ratio)), all steps.
LENGTHS = [(dict(steps=0), 0, 41), (dict(steps=7), 7, 41), (dict(ratio=0.03), math.ceil(41 * 0.03), 41)]

LOSSES = [2.0, 1.5, 1.49999, 1.6, 1.4, 1.4, 1.41, 1.42, 1.5, math.nan, 1.3, 1.31, 1.32, 1.33, 1.2999, 1.35, 1.36, 1.0, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2]
PLATEAUS = [
    (dict(factor=0.5, patience=1), dict(factor=0.5, patience=1)),
    (dict(factor=0.3, patience=0, threshold=0.05, cooldown=2, min_lr=1e-6), dict(factor=0.3, patience=0, threshold=0.05, cooldown=2, min=1e-6)),
    (dict(patience=2, cooldown=1), dict(patience=2, cooldown=1)),
    ({}, {}),
    # Down to where a reduction is too small to be one.
    (dict(patience=0), dict(patience=0)),
]


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)


def schedule(name, settings, warmup, total):
    optim = optimizer()
    scheduler = get_scheduler(name, optim, warmup, total, scheduler_specific_kwargs=settings)
    rates = []
    # Three more than the run has: a rate is defined there, too.
    for _ in range(total + 3):
        rates.append(optim.param_groups[0]["lr"])
        optim.step()
        scheduler.step()
    return rates


def plateau(settings):
    optim = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optim, **settings)
    rates = []
    for loss in LOSSES:
        scheduler.step(loss)
        rates.append(optim.param_groups[0]["lr"])
    return rates


print(json.dumps(dict(
    torch=torch.__version__,
    transformers=transformers.__version__,
    base=BASE,
    schedules=[
        dict(schedule=name if ours is None else {name: ours}, warmup=span, total=total, rates=schedule(name, settings, warmup, total))
        for name, settings, ours in CASES
        for span, warmup, total in LENGTHS
        if name != "constant" or warmup == 0
    ],
    # NaN is not JSON.
    losses=[None if math.isnan(loss) else loss for loss in LOSSES],
    plateaus=[dict(schedule=dict(reduce_lr_on_plateau=ours), rates=plateau(settings)) for settings, ours in PLATEAUS],
)))
