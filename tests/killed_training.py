"""Run by test_train.py: one training, killed with SIGKILL again and again and started anew each time; prints how often it was killed.

    python killed_training.py FOLDER OUT.npz    checkpoints in FOLDER; weights and history of the end in OUT.npz
    python killed_training.py - OUT.npz         the same training, undisturbed and without checkpoints
    ... OUT.npz staged                          three classes, drawn by a balanced sampler, with an encoder that is thawed in stages
    ... OUT.npz bags                            survival from bags and genes, some of which are missing, with modality dropout

Each attempt is a forked process. The k-th attempt kills itself at its k-th step, where a step is a batch, or one of the moments of
writing a file: before, when half of it is written, when all is written but not yet moved into place, after that. So every moment of an epoch is met.
"""
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from fusion_nb import runs, train
from fusion_nb.bag_fusion import build_bag_model
from fusion_nb.batches import FusionData, PatchAugment
from fusion_nb.encoders import image_encoder
from fusion_nb.fusion import build_model
from fusion_nb.slide_features import bags_of

torch.set_num_threads(1)  # a forked process must not inherit the threads of a pool


def toy_training(folder):
    rng = np.random.default_rng(0)
    labels = (np.arange(90) % 3 == 0).astype("float32")
    images = rng.integers(0, 150, (90, 1, 16, 16), dtype=np.uint8) + (30 * labels).astype("uint8")[:, None, None, None]
    data = FusionData(images, rng.normal(size=(90, 4)).astype("float32"), labels)
    model = build_model("learned_multi_optimiser", "small_cnn", table_dim=4, hidden=(16, 8))
    config = train.TrainConfig(lr=0.003, batch_size=20, epochs=7, patience=5, schedule="cosine", accelerator="cpu")
    history = train.fit(model, data, np.arange(60), np.arange(60, 90), config=config, folder=folder, progress=False)
    return {**{k: t.numpy() for k, t in model.state_dict().items()}, "history": history.to_numpy()}


def staged_training(folder):
    """Three classes, a sampler, an encoder thawed in stages, warm-up and patches that are augmented; killed in every stage."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    data = FusionData(rng.integers(0, 150, (90, 3, 16, 16), dtype=np.uint8), rng.normal(size=(90, 4)).astype("float32"), labels)
    model = build_model("feature_fusion", lambda: image_encoder("small_cnn", channels=3, widths=(4, 8, 8)), table_dim=4, hidden=(8,), n_classes=3)
    config = train.TrainConfig(lr=0.003, batch_size=30, epochs=7, patience=7, schedule="step", warmup=1, loss="focal", sampler="balanced", pos_weight=None,
                               monitor="macro_f1", finetune=train.Finetune(1e-3, 2, 1), augment=PatchAugment(), accelerator="cpu")
    history = train.fit(model, data, np.arange(60), np.arange(60, 90), config=config, folder=folder, progress=False)
    return {**{k: t.numpy() for k, t in model.state_dict().items()}, "history": history.to_numpy()}


def bag_training(folder):
    """Survival of patients with one or two cases, from patches and genes of which some are missing; patches and what is dropped are drawn anew in each epoch."""
    rng = np.random.default_rng(0)
    bags = bags_of([rng.normal(size=(rng.integers(0, 7), 5)) for _ in range(90)], bag_size=3)
    genes = rng.normal(size=(90, 6)).astype("float32")
    genes[(np.arange(90) % 7 == 0) & (bags.sizes > 0)] = np.nan
    groups = np.arange(90) // 3 * 2 + (np.arange(90) % 3 == 2)
    labels = np.stack([np.round(1 + rng.exponential(9, 90)), rng.random(90) < .6], axis=1).astype("float32")[np.unique(groups, return_index=True)[1]][groups]
    model = build_bag_model("cross_attention", token_dim=5, table_dim=6, dim=8, gene_hidden=(8,), modality_dropout=.3)
    config = train.TrainConfig(lr=.003, batch_size=20, epochs=7, patience=7, loss="cox", monitor="harrell_c", accelerator="cpu")
    history = train.fit(model, FusionData(bags, genes, labels, groups), np.arange(60), np.arange(60, 90), config=config, folder=folder, progress=False)
    return {**{k: t.numpy() for k, t in model.state_dict().items()}, "history": history.to_numpy()}


def kill_at(n):
    """From now on, the n-th of the moments is this process's last."""
    left = iter(range(n - 1, -1, -1))

    def moment():
        if next(left) == 0: os.kill(os.getpid(), signal.SIGKILL)

    def step_by_step(original):
        def batches(*args, **kw):
            for batch in original(*args, **kw):
                moment()
                yield batch
        return batches

    def write(original):
        def save_file(tensors, path, metadata):
            moment()
            original(tensors, path, metadata)
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[:len(whole) // 2])
            moment()
            Path(path).write_bytes(whole)
            moment()
        return save_file

    def move(original):
        def replace(*paths):
            original(*paths)
            moment()
        return replace

    FusionData.batches = step_by_step(FusionData.batches)
    train.save_file = write(train.save_file)
    runs.os.replace = move(os.replace)


def attempt(n, folder, out, training):
    """Whether the n-th attempt came to the end; each is a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            kill_at(n)
            np.savez(out, **training(folder))
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status): assert os.WTERMSIG(status) == signal.SIGKILL
    else: assert os.WEXITSTATUS(status) == 0, "the attempt failed by itself"
    return not os.WIFSIGNALED(status)


if __name__ == "__main__":
    folder, out, *which = sys.argv[1:]
    training = {"staged": staged_training, "bags": bag_training}[which[0]] if which else toy_training
    if folder == "-":
        np.savez(out, **training(None))
    else:
        kills = next(n for n in range(1, 100) if attempt(n, folder, out, training)) - 1
        print(kills)
