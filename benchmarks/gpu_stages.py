"""What gpu.py measures, a stage a process: `python gpu_stages.py STAGE RESULT.json SETTINGS.json`.

Without a GPU each stage does the same with a small study and a recorder that runs what it has recorded.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STUDY = HERE / "time_to_target.toml"
PARAMS = {
    "batch_size": 128,
    "learning_rate": 0.01,
    "frozen_layers": 0,
    "augmentation_strength": 1.0,
    "initial_weights": "pretrained",
}
Result = dict[str, Any]
Completed = subprocess.CompletedProcess[str]


class Called:
    """The stand-in for CUDA graphs."""

    def warm_up(self, run: Callable[[], None]) -> None:
        run()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        return run


def overrides(given: Result, *more: str) -> list[str]:
    """Of time_to_target.toml; a zip of TinyImageNet's layout, or handwritten digits."""
    if given["archive"]:
        images = [f"data.archive={given['archive']}"]
    else:
        images = ["data.name=digits", "model.input_size=32", "training.horizontal_flip=false"]
    if given["images_per_class"]:
        images.append(f"data.images_per_class={given['images_per_class']}")
    return [*images, f"model.weights={given['weights'] or 'none'}", *more]


def objective_of(given: Result, folder: Path, *more: str) -> Any:
    from real_objective import robust_accuracy

    from hpo.study_file.reading import load_spec

    spec = load_spec(STUDY, overrides(given, *more))
    return robust_accuracy(spec, None, folder / "artifacts")


def trial_of(objective: Any, params: Result) -> Any:
    from hpo.doors.objective import Trial

    return Trial(0, params, seed=objective.spec.seed, steps=objective.spec.steps)


def training_of(objective: Any, **params: Any) -> Any:
    from hpo.vision.training.loop import Training

    every = PARAMS | params
    network = objective.network(every, objective.initial_weights(every))
    on_gpu = objective.compute.device.type == "cuda"
    return Training(
        network, objective.recipe(trial_of(objective, every)), objective.compute, None if on_gpu else Called()
    )


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rate(step: Callable[[], object], images: int, secs: float) -> int:
    """Images a second of a step that takes so many."""
    for _ in range(3):
        step()
    synchronize()
    started = time.perf_counter()
    steps = 0
    while time.perf_counter() - started < secs:
        for _ in range(5):
            step()
        steps += 5
        synchronize()
    return round(images * steps / (time.perf_counter() - started))


def limit(given: Result) -> Result:
    """PyTorch's own step on a batch that lies on the device: called, and as a CUDA graph."""
    import torch
    from torch.nn import functional as F
    from torchvision.models import resnet18

    from hpo.vision.device import choose_compute

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recorder: Any = Called()
    if device.type == "cuda":
        from hpo.vision.training.step import CudaRecorder

        recorder = CudaRecorder()

    def make_step(batch: int) -> Callable[[], None]:
        model = resnet18(num_classes=200).to(device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, fused=True, weight_decay=5e-4)
        images = torch.rand(batch, 3, 64, 64, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(batch, device=device) % 200

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    found: Result = {"eager": {}, "captured": {}, "captured, deterministic": {}}
    for batch in given["batches"]:
        torch.backends.cudnn.benchmark = True
        step = make_step(batch)
        found["eager"][batch] = rate(step, batch, given["secs"])
        recorder.warm_up(step)
        found["captured"][batch] = rate(recorder.record(step), batch, given["secs"])
    torch.backends.cudnn.benchmark = False
    choose_compute(None, 64)
    for batch in given["batches"]:
        step = make_step(batch)
        recorder.warm_up(step)
        found["captured, deterministic"][batch] = rate(recorder.record(step), batch, given["secs"])
    return found


class RandomPerturbation:
    """The plain script's."""

    def __call__(self, pixels: Any) -> Any:
        import torch

        which, how_much = torch.rand(2).tolist()
        if which < 0.25:
            return (pixels + torch.randn_like(pixels) * how_much * 0.2).clamp(0, 1)
        if which < 0.5:
            chosen = torch.rand(1, *pixels.shape[1:]) < how_much * 0.1
            return torch.where(chosen, torch.rand_like(pixels), pixels)
        return pixels


def write_image_folder(given: Result, folder: Path) -> tuple[int, int]:
    """The training images as JPEGs, a folder a class; their size and how many classes."""
    from PIL import Image

    images = objective_of(given, folder).images
    for row, label in zip(images.train.rows, images.train.labels, strict=True):
        path = folder / "images" / f"{label:05}" / f"{row}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.train.pixels[row]).save(path, quality=90)
    return images.train.pixels.shape[1], len(images.classes)


def plain(given: Result) -> Result:
    """A competent user's loop: ImageFolder, DataLoader, torchvision's transforms, autocast, channels_last."""
    import torch
    from torch.nn import functional as F
    from torchvision import datasets, transforms
    from torchvision.models import resnet18

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # threads of this process would harm the loaders
            size, classes = pool.submit(write_image_folder, given, Path(folder)).result()
        normal = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        crop = transforms.RandomCrop(size, padding=size // 16, padding_mode="reflect")
        steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), RandomPerturbation(), normal]
        loader = torch.utils.data.DataLoader(
            datasets.ImageFolder(str(Path(folder, "images")), transforms.Compose(steps)),
            given["plain_batch"],
            shuffle=True,
            num_workers=given["loaders"],
            persistent_workers=True,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
        model = resnet18(num_classes=classes).to(device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True)
        rates = []
        for _ in range(given["plain_epochs"]):
            started, count = time.perf_counter(), 0
            for batch, right in loader:
                pixels = batch.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
                labels = right.to(device, non_blocking=True)
                with torch.autocast(device.type, torch.bfloat16):
                    loss = F.cross_entropy(model(pixels), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                count += len(labels)
            synchronize()
            rates.append(round(count / (time.perf_counter() - started)))
    return {"epochs": rates, "best": max(rates)}


def epochs_of(objective: Any, trial: Any) -> list[float]:
    """How many seconds each epoch took, with the checkpoint that a worker leaves after it."""
    from hpo.search import checkpoints
    from hpo.search.checkpoint_writer import CheckpointWriter

    writer, store = CheckpointWriter(), objective.store
    marks = [time.perf_counter()]
    for measured in objective.run(trial):
        if measured.step < trial.steps:
            writer.offer(checkpoints.taking(store, trial, (), "", measured, []))
        writer.move_on()
        marks.append(time.perf_counter())
    writer.close()
    checkpoints.discard(store, [trial.number])
    return [after - before for before, after in itertools.pairwise(marks)]


def steps(given: Result) -> Result:
    """hpo's step; whole epochs as trials have them, scoring, averaging and checkpoints included; memory."""
    import torch

    from hpo.vision.inference import Inference
    from hpo.vision.scoring import embedded, evaluate
    from hpo.vision.training.batches import Batches

    found: Result = {"step": {}, "epoch": {}, "first_epoch_secs": {}, "peak_mib": {}, "how": {}}
    with tempfile.TemporaryDirectory() as folder:
        objective = objective_of(given, Path(folder), f"training.epochs={given['epochs']}")
        training_of(objective)  # the head is fitted
        for batch, frozen in itertools.product(given["batches"], given["frozen"]):
            name = f"{batch}, {frozen} frozen"
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            training = training_of(objective, batch_size=batch, frozen_layers=frozen)
            recipe = training.recipe
            batches = Batches(objective.training_images, recipe.augmentation, training.frozen_part, recipe.seed)
            features, labels = next(batches.of_epoch(1, batch, training.portions))
            every = max(1, 256 // batch)
            numbers = itertools.count(1)
            training.network.train()

            def step() -> None:
                training.runner.step.rate.fill_(1e-3)  # noqa: B023
                training.runner.run(features, labels)  # noqa: B023
                if training.average and next(numbers) % every == 0:  # noqa: B023
                    training.average.take()  # noqa: B023

            found["step"][name] = rate(step, len(labels), given["secs"])
            found["how"][name] = training.runner.how
            training.runner.forget()
            params = PARAMS | {"batch_size": batch, "frozen_layers": frozen}
            took = epochs_of(objective, trial_of(objective, params))
            found["epoch"][name] = round(len(objective.images.train) / statistics.median(took[1:]))
            found["first_epoch_secs"][name] = round(took[0], 3)
            if torch.cuda.is_available():
                found["peak_mib"][name] = torch.cuda.max_memory_reserved() // 2**20
        tuning = embedded(objective.tuning, training.frozen_part) or objective.tuning
        scored = Inference(training.averaged.trainable_part, objective.compute)
        count = len(tuning.labels) * len(tuning.conditions)
        found["scoring"] = rate(lambda: evaluate(scored, tuning), count, given["secs"])
        found["train_images"] = len(objective.images.train)
        found["tuning_images"] = len(objective.images.tuning)
    return found


def start(given: Result) -> Result:
    """Where a worker's first seconds go."""
    found: Result = {}

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        synchronize()
        found[name] = round(time.perf_counter() - started, 3)

    with timed("import torch"):
        import torch
    with timed("CUDA context"):
        torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        with timed("images, weights"):
            objective = objective_of(given, Path(folder))
        from hpo.vision.training.head import fitted_head

        pretrained = objective.pretrained
        network = objective.network({"frozen_layers": 0}, pretrained).to(objective.compute.device)
        for name in ("head, the first", "head, once more"):
            with timed(name):
                fitted_head(network, objective.images.train, objective.compute, 0.1)
        with timed("tuning images"):
            tuning = objective.tuning
        for name in ("first", "second"):
            with timed(f"{name} trial: network"):
                training = training_of(objective)
            from hpo.vision.training.loop import fine_tune

            with timed(f"{name} trial: first epoch"):
                next(fine_tune(training, objective.training_images, tuning))
            training.runner.forget()
    return found


def trials(given: Result) -> Result:
    """`hpo run`: so many random trials by 1, 2, … workers, with MPS where there is one, and some without; start to end,
    by the clock.
    """
    from hpo import load_results
    from hpo.workers.gpu_sharing import CONTROL

    found: Result = {"wall_secs": {}, "first_trial_secs": {}, "scores": {}, "median_trial_secs": {}, "failed": {}}
    arguments = overrides(given, f"budget={given['trials']}", f"training.epochs={given['trial_epochs']}")
    arguments += ["sampler.name=random", "pruner.name=none"]
    has_mps = shutil.which(CONTROL) is not None
    ways = [(workers, has_mps and workers > 1) for workers in given["workers"]]
    ways += [(workers, False) for workers in given["workers_without_mps"] if has_mps]
    for workers, mps in ways:
        name = f"{workers} {'workers' if workers > 1 else 'worker'}{', MPS' if mps else ''}"
        with tempfile.TemporaryDirectory() as folder:
            started = time.time()
            command = ("run", str(STUDY), "--workers", str(workers))
            ran = hpo(Path(folder), *command, settings=arguments, HPO_MPS=str(int(mps)))
            found["wall_secs"][name] = round(time.time() - started, 1)
            if ran.returncode:
                found["failed"][name] = ran.stderr[-500:]
                continue
            told = load_results("time-to-target", storage=f"sqlite:///{folder}/hpo.db")
            times = [(trial.started_at.timestamp(), trial.finished_at.timestamp()) for trial in told]
            found["scores"][name] = [trial.score for trial in told]
            found["first_trial_secs"][name] = round(min(begun for begun, _ in times) - started, 1)
            found["median_trial_secs"][name] = round(statistics.median(ended - begun for begun, ended in times), 2)
            found["made_by"] = told[0].made_by
    scores = list(found["scores"].values())
    found["same_scores"] = len(scores) > 1 and all(some == scores[0] for some in scores)
    return found


def hpo(folder: Path, *command: str, settings: Sequence[str] = (), **environment: str) -> Completed:
    """The real command, in a folder."""
    overriding = [part for setting in settings for part in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-m", "hpo", *command, *overriding],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def equality(given: Result) -> Result:
    """Called against replayed; a training that goes on against the unbroken one."""
    import torch

    from hpo.vision.classifier import fingerprint
    from hpo.vision.random_bits import normal, uniform
    from hpo.vision.training.checkpoints import checkpoint_as_bytes, checkpoint_from_bytes
    from hpo.vision.training.loop import fine_tune

    def correct(result: Any) -> list[int]:
        return [accuracy.correct for accuracy in result.accuracies.values()]

    found: Result = {}
    with tempfile.TemporaryDirectory() as folder:
        objective = objective_of(given, Path(folder), "training.epochs=3")
        images, tuning = objective.training_images, objective.tuning
        keys, device = torch.arange(99), objective.compute.device
        found["uniform numbers as on the CPU, to the bit"] = torch.equal(
            uniform(keys, 999), uniform(keys.to(device), 999).cpu()
        )
        differences = normal(keys, 999) - normal(keys.to(device), 999).cpu()
        found["normal numbers, largest difference from the CPU's"] = float(f"{differences.abs().max():.1e}")
        begin = partial(training_of, objective, frozen_layers=2)
        trained = {}
        for name in ("replayed", "again", "called"):
            training = begin()
            if name == "called":
                training.runner.recorder = None
            result = next(fine_tune(training, images, tuning))
            weights = torch.cat([p.detach().float().flatten() for p in training.network.parameters()])
            trained[name] = (weights, correct(result))
        difference = (trained["called"][0] - trained["replayed"][0]).norm() / trained["called"][0].norm()
        found["called against replayed, relative difference of weights after an epoch"] = float(f"{difference:.2e}")
        found["correct when called, when replayed"] = [trained["called"][1], trained["replayed"][1]]
        found["replayed twice, to the digit"] = torch.equal(trained["replayed"][0], trained["again"][0])
        unbroken = begin()
        expected = [correct(result) for result in fine_tune(unbroken, images, tuning)]
        broken, resumed = begin(), begin()
        epochs = fine_tune(broken, images, tuning)
        first = correct(next(epochs))
        checkpoint = checkpoint_from_bytes(checkpoint_as_bytes(broken.tensors(), {}))
        assert checkpoint is not None
        epochs.close()
        resumed.restore(checkpoint.tensors)
        rest = [correct(result) for result in fine_tune(resumed, images, tuning)]
        same_weights = fingerprint(resumed.network.state_dict()) == fingerprint(unbroken.network.state_dict())
        found["resumed = unbroken, to the digit"] = [first, *rest] == expected and same_weights
    return found


def killed(given: Result) -> Result:
    """A worker that is killed in the middle of an epoch: what goes on elsewhere gives what the unbroken trial gave."""
    from hpo.search.sql.dead_workers import give_back_trials_of
    from hpo.search.sql.storage import open_engine
    from hpo.search.sql.url import parse_url
    from hpo.workers.launcher import worker_name

    settings = overrides(given, "budget=1", f"training.epochs={given['killed_epochs']}")
    settings += ["search.batch_size=32", "search.learning_rate={low=0.01,high=0.02}", "pruner.name=none"]

    def trial(place: Path) -> Any:
        """In the folder `killed`, of a worker that is killed and of another that goes on."""
        place.mkdir()
        assert hpo(place, "submit", str(STUDY), settings=settings).returncode == 0
        if place.name == "killed":
            worker = subprocess.Popen([sys.executable, "-m", "hpo", "worker"], cwd=place, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 120
            while not list(place.glob("hpo-artifacts/*/*.checkpoint")):
                assert time.monotonic() < deadline, "no checkpoint"
                time.sleep(0.02)
            time.sleep(given["killed_after_secs"])
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            give_back_trials_of(open_engine(parse_url(f"sqlite:///{place}/hpo.db")), worker_name(worker.pid))
        ran = hpo(place, "worker")
        assert ran.returncode == 0, ran.stderr
        return json.loads(hpo(place, "best", "time-to-target", "--json").stdout)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2 if given["on_gpu"] else 1) as pool:
        unbroken, resumed = pool.map(trial, (Path(folder, "unbroken"), Path(folder, "killed")))
    return {
        "resumed after epoch": resumed.get("resumed_after_epoch", 0),
        "the same correct counts": unbroken["correct"] == resumed["correct"],
        "correct": resumed["correct"],
    }


def memory(given: Result) -> Result:
    """Batches of 512 in a process that may take little of the GPU."""
    import torch

    from hpo.vision.training.loop import fine_tune

    if not torch.cuda.is_available():
        return {"left out": "needs a GPU; tests/test_training.py does it with a process's own memory"}
    with tempfile.TemporaryDirectory() as folder:
        objective = objective_of(given, Path(folder), "training.epochs=1")
        training_of(objective)
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        allowed = torch.cuda.memory_reserved() + given["memory_mib"] * 2**20
        torch.cuda.set_per_process_memory_fraction(allowed / whole)
        training = training_of(objective, batch_size=512)
        result = next(fine_tune(training, objective.training_images, objective.tuning))
        return {
            "allowed_mib": allowed // 2**20,
            "micro_batch": training.portions.micro_batch,
            "prepared": training.portions.prepared,
            "how": training.runner.how,
            "loss": round(result.loss, 4),
            "peak_mib": torch.cuda.max_memory_reserved() // 2**20,
        }


def compiled(given: Result) -> Result:
    """`training.compile`: what its first step costs, and what the others gain."""
    found: Result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in (("as it is", "false"), ("compiled", "true")):
            from hpo.vision.training.batches import Batches

            objective = objective_of(given, Path(folder), f"training.compile={setting}")
            training = training_of(objective, batch_size=given["plain_batch"])
            recipe = training.recipe
            batches = Batches(objective.training_images, recipe.augmentation, training.frozen_part, recipe.seed)
            features, labels = next(batches.of_epoch(1, recipe.batch_size, training.portions))
            training.network.train()
            synchronize()
            started = time.perf_counter()
            training.runner.run(features, labels)
            synchronize()
            found[f"{name}: first step, s"] = round(time.perf_counter() - started, 1)
            step = partial(training.runner.run, features, labels)
            found[f"{name}: images/s"] = rate(step, len(labels), given["secs"])
            found[f"{name}: steps are"] = training.runner.how
    return found


STAGES = {stage.__name__: stage for stage in (limit, plain, steps, start, equality, killed, memory, trials, compiled)}


if __name__ == "__main__":
    stage, result, settings_file = sys.argv[1:]
    Path(result).write_text(json.dumps(STAGES[stage](json.loads(Path(settings_file).read_text()))))
