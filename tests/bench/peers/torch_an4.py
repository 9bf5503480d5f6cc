#!/usr/bin/env python3
"""PyTorch's synchronous training of the AN4 job (deploy/examples/an4-mono.yaml): one nn.LSTM(proj_size) of
256 cells and 128 projections, 132 targets, windows of 20 frames whose state is carried, outputs 5 frames
late, SGD with Nesterov momentum. Prints one line of JSON: wall seconds (reading the data and training,
without the import, the making of the model and the evaluation), the CPU's seconds of the same, frames/s, and
the accuracy on dev after the last epoch. Exit status 77: PyTorch is not installed.

  torch_an4.py --data AN4     a folder with train/ and dev/: feats.scp, ali.scp and the archives they name
"""
import argparse
import json
import os
import struct
import time

import tuned

WINDOW = 20
DELAY = 5
TARGETS = 132
CELLS = 256
PROJECTION = 128
NO_LABEL = -100  # what cross_entropy ignores


def archive_entries(scp):
    """(utterance, its archive's bytes from its entry on); paths are relative to the scp."""
    archives = {}
    with open(scp, encoding="utf-8") as lines:
        for line in lines:
            name, place = line.split()
            path, offset = place.rsplit(":", 1)
            if path not in archives:
                with open(os.path.join(os.path.dirname(scp), path), "rb") as archive:
                    archives[path] = archive.read()
            yield name, memoryview(archives[path])[int(offset):]


def read_matrix(np, data):
    """Kaldi's binary matrix: floats, or bytes between four percentiles of their column."""
    kind = bytes(data[:5])
    if kind == b"\0BFM ":
        _, rows, _, cols = struct.unpack_from("<bibi", data, 5)
        return np.frombuffer(data, "<f4", rows * cols, 15).reshape(rows, cols)
    assert kind == b"\0BCM ", kind
    least, span, rows, cols = struct.unpack_from("<ffii", data, 5)
    percentiles = least + np.frombuffer(data, "<u2", 4 * cols, 21).reshape(cols, 4) * (span / 65535)
    levels = np.frombuffer(data, "u1", rows * cols, 21 + 8 * cols).reshape(cols, rows)
    columns = [np.interp(levels[c], [0, 64, 192, 255], percentiles[c]) for c in range(cols)]
    return np.stack(columns, axis=1).astype("f4")


def read_labels(np, data):
    """Kaldi's binary vector of integers: each has its size, 4, before it."""
    assert bytes(data[:3]) == b"\0B\4"
    (count,) = struct.unpack_from("<i", data, 3)
    return np.frombuffer(data, np.dtype([("size", "i1"), ("value", "<i4")]), count, 7)["value"]


def read_set(np, folder):
    """[(features [N x 40], labels [N])], every utterance."""
    feats, alignment = (archive_entries(os.path.join(folder, scp)) for scp in ("feats.scp", "ali.scp"))
    features = {name: read_matrix(np, data) for name, data in feats}
    labels = {name: read_labels(np, data) for name, data in alignment}
    return [(features[name], labels[name]) for name in features]


def delayed(np, features, labels, length):
    """Padded to `length` steps: the last frame repeated, the label of frame n at step n + DELAY."""
    frames = len(features)
    at = np.full(length, NO_LABEL, "i8")
    at[DELAY:DELAY + frames] = labels
    return features[np.minimum(np.arange(length), frames - 1)], at


class Windows:
    """A set cut to windows: x [WINDOW x W x 40], target [WINDOW x W]; those of utterance u are first[u] up to
    first[u + 1]. The last window of all is padding alone."""

    def __init__(self, torch, np, utterances):
        counts = [-(-(len(features) + DELAY) // WINDOW) for features, _ in utterances]
        padded = [delayed(np, *u, n * WINDOW) for u, n in zip(utterances, counts)]
        padded.append((np.zeros_like(padded[0][0][:WINDOW]), np.full(WINDOW, NO_LABEL, "i8")))
        x, target = (np.concatenate(parts) for parts in zip(*padded))
        x, target = x.reshape(-1, WINDOW, x.shape[1]).swapaxes(0, 1), target.reshape(-1, WINDOW).T
        self.x, self.target = torch.tensor(x).contiguous(), torch.tensor(target).contiguous()
        self.first = [0, *np.cumsum(counts).tolist()]
        self.padding = self.first[-1]


def feed(windows, order, streams):
    """Yields the streams' windows, which of them begin an utterance, and how many utterances were begun. A
    stream that has read an utterance begins the next in `order`, across the epochs' ends."""
    waiting = iter(order)
    begun = 0
    current = [iter(())] * streams
    while True:
        ids, fresh = [], []
        for s in range(streams):
            following = next(current[s], None)
            fresh.append(following is None)
            if following is None and (u := next(waiting, None)) is not None:
                begun += 1
                current[s] = iter(range(windows.first[u], windows.first[u + 1]))
                following = next(current[s])
            ids.append(windows.padding if following is None else following)
        if all(i == windows.padding for i in ids):
            return
        yield ids, fresh, begun


def make_model(torch):
    lstm, output = torch.nn.LSTM(40, CELLS, proj_size=PROJECTION), torch.nn.Linear(PROJECTION, TARGETS)
    with torch.no_grad():
        for bias in (lstm.bias_ih_l0, lstm.bias_hh_l0, output.bias):
            bias.zero_()
        lstm.bias_ih_l0[CELLS:2 * CELLS] = 1  # the forget gate's
    return lstm, output


def rate_at(options, epoch):
    return options.rate * options.fall ** max(0, epoch - options.fall_from + 1)


def train(torch, model, windows, order, options):
    """Returns how many windows of all streams it took."""
    lstm, output = model
    parameters = [*lstm.parameters(), *output.parameters()]
    sgd = torch.optim.SGD(parameters, lr=0, momentum=options.momentum, nesterov=True, fused=True)
    state = (torch.zeros(1, options.streams, PROJECTION), torch.zeros(1, options.streams, CELLS))
    per_epoch = len(windows.first) - 1
    steps = 0
    for ids, fresh, begun in feed(windows, order, options.streams):
        sgd.param_groups[0]["lr"] = rate_at(options, 1 + (begun - 1) // per_epoch)
        keep = 1 - torch.tensor(fresh, dtype=torch.float32)[None, :, None]
        chosen = torch.tensor(ids)
        r, (r_last, c_last) = lstm(windows.x.index_select(1, chosen), tuple(s * keep for s in state))
        state = (r_last.detach(), c_last.detach())
        loss = torch.nn.functional.cross_entropy(
            output(r).flatten(0, 1), windows.target.index_select(1, chosen).flatten(), reduction="sum")
        sgd.zero_grad()
        (loss / (WINDOW * options.streams)).backward()
        sgd.step()
        steps += 1
    return steps


def evaluate(torch, np, model, utterances):
    """Share of the frames that are right, and cross entropy; every utterance whole, from state zero."""
    lstm, output = model
    longest = max(len(features) for features, _ in utterances) + DELAY
    x, target = (torch.tensor(np.stack(part, axis=1)) for part in
                 zip(*(delayed(np, *u, longest) for u in utterances)))
    with torch.no_grad():
        logits, target = output(lstm(x)[0]).flatten(0, 1), target.flatten()
        entropy = torch.nn.functional.cross_entropy(logits, target)
        right = (logits.argmax(1) == target).sum() / (target != NO_LABEL).sum()
    return right.item(), entropy.item()


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.3, help="on the gradient divided by 20 * streams")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--fall", type=float, default=0.3, help="the rate's factor in every epoch from ...")
    parser.add_argument("--fall-from", type=int, default=9)
    return parser.parse_args()


def main():
    options = parse_options()
    tuned.restart_with(options.threads)
    import numpy as np
    import torch

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    model = make_model(torch)

    start, cpu = time.perf_counter(), time.process_time()
    utterances = read_set(np, os.path.join(options.data, "train"))
    frames = np.concatenate([features for features, _ in utterances])
    mean, deviation = frames.mean(0), frames.std(0)
    windows = Windows(torch, np, [((features - mean) / deviation, labels) for features, labels in utterances])
    shuffle = np.random.default_rng(options.seed)
    order = [u for _ in range(options.epochs) for u in shuffle.permutation(len(utterances))]
    read = time.perf_counter() - start
    steps = train(torch, model, windows, order, options)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu

    dev = read_set(np, os.path.join(options.data, "dev"))
    dev = [((features - mean) / deviation, labels) for features, labels in dev]
    start = time.perf_counter()
    right, entropy = evaluate(torch, np, model, dev)
    print(json.dumps({
        "peer": "torch", "version": torch.__version__, "job": "an4", "streams": options.streams,
        "threads": options.threads, "epochs": options.epochs, "seed": options.seed, "rate": options.rate,
        "dev_accuracy": round(100 * right, 2), "dev_cross_entropy": round(entropy, 4),
        "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "read_seconds": round(read, 2),
        "eval_seconds": round(time.perf_counter() - start, 2), "steps": steps,
        "frames_per_second": round(options.epochs * len(frames) / (seconds - read), 1)}))


if __name__ == "__main__":
    main()
