#!/usr/bin/env python3
"""Frames/s of PyTorch on the bench's models: nn.LSTM(proj_size) layers, a linear output layer, cross entropy,
fp32 on the CPU, windows of 20 frames whose state is carried and detached. PyTorch has no peepholes and no
clips in the cell. Prints one line of JSON; SECONDS are spent on each of its three figures. Exit status 77:
PyTorch is not installed."""
import argparse
import json
import time

import tuned

WINDOW = 20
INPUTS = 40
# layers, cells, projection, targets
MODELS = {
    "A": (1, 1024, 256, 126),
    "B": (2, 800, 512, 8000),
    "C": (3, 512, 200, 2000),
    "D": (1, 128, 64, 50),
}


class Trainer:
    def __init__(self, torch, model, streams):
        layers, cells, projection, targets = MODELS[model]
        self.torch = torch
        self.lstm = torch.nn.LSTM(INPUTS, cells, num_layers=layers, proj_size=projection)
        self.output = torch.nn.Linear(projection, targets)
        self.parameters = [*self.lstm.parameters(), *self.output.parameters()]
        self.sgd = torch.optim.SGD(self.parameters, lr=1e-4, fused=True)
        self.x = torch.randn(WINDOW, streams, INPUTS)
        self.target = torch.randint(targets, (WINDOW * streams,))
        self.state = (torch.zeros(layers, streams, projection), torch.zeros(layers, streams, cells))

    def loss(self):
        r, state = self.lstm(self.x, self.state)
        self.state = tuple(s.detach() for s in state)
        return self.torch.nn.functional.cross_entropy(self.output(r).flatten(0, 1), self.target)

    def forward(self):
        with self.torch.no_grad():
            self.loss()

    def train(self):
        for p in self.parameters:
            p.grad = None
        self.loss().backward()

    def train_update(self):
        self.train()
        self.sgd.step()


def frames_per_second(step, frames, seconds):
    step()
    step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        steps += 1
    return steps * frames / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    tuned.restart_with(options.threads)
    import torch

    torch.manual_seed(1)
    torch.set_num_threads(options.threads)
    trainer = Trainer(torch, options.model, options.streams)
    frames = WINDOW * options.streams
    figures = {name: round(frames_per_second(getattr(trainer, name), frames, options.seconds), 1)
               for name in ("train", "train_update", "forward")}
    print(json.dumps({"peer": "torch", "version": torch.__version__, "model": options.model,
                      "streams": options.streams, "threads": options.threads, **figures}))


if __name__ == "__main__":
    main()
