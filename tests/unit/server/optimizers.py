#!/usr/bin/env python3
"""Writes optimizers_golden.h: weights after 1, 10 and 100 steps of PyTorch's optimizers in float64, for test_update.c.

python3 optimizers.py > optimizers_golden.h, with PyTorch (2.13.0 wrote the file that is here); the test itself needs
no Python. Settings are the float32 numbers that the servers compute with; gradients and first weights are floats of a
formula that the test has too.
"""
import struct

import torch

WEIGHTS, STEPS = 12, (1, 10, 100)


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


RATE, MOMENTUM, BETA1, BETA2, EPSILON = map(f32, (0.05, 0.9, 0.9, 0.999, 0.01))
DECAYS = (0.0, f32(0.02))


def gradient(step, i):
    """In [-1, 1), now and then 0, smaller for some weights than for others; exact in float32."""
    h = (step * 64 + i + 1) * 2654435761 & 0xFFFFFFFF
    h = (h ^ h >> 15) * 2246822519 & 0xFFFFFFFF
    h ^= h >> 13
    return 0.0 if h % 16 == 0 else ((h >> 8) / 2**23 - 1) / 2 ** (i % 4)


def optimizers(weights, decay):
    o, p = torch.optim, [weights]
    betas = (BETA1, BETA2)
    return {
        "SGD": lambda: o.SGD(p, lr=RATE, weight_decay=decay),
        "MOMENTUM": lambda: o.SGD(p, lr=RATE, momentum=MOMENTUM, weight_decay=decay),
        "NESTEROV": lambda: o.SGD(p, lr=RATE, momentum=MOMENTUM, nesterov=True, weight_decay=decay),
        "ADAGRAD": lambda: o.Adagrad(p, lr=RATE, eps=EPSILON, weight_decay=decay),
        "RMSPROP": lambda: o.RMSprop(p, lr=RATE, alpha=BETA2, eps=EPSILON, weight_decay=decay),
        "ADAM": lambda: o.Adam(p, lr=RATE, betas=betas, eps=EPSILON, weight_decay=decay),
        "ADAMW": lambda: o.AdamW(p, lr=RATE, betas=betas, eps=EPSILON, weight_decay=decay),
    }


def run(name, decay):
    weights = torch.tensor([(i - 5.5) / 8 for i in range(WEIGHTS)], dtype=torch.float64, requires_grad=True)
    optimizer, rows = optimizers(weights, decay)[name](), []
    for step in range(max(STEPS)):
        weights.grad = torch.tensor([gradient(step, i) for i in range(WEIGHTS)], dtype=torch.float64)
        optimizer.step()
        if step + 1 in STEPS:
            rows.append(weights.tolist())
    return rows


def print_row(row):
    cells = ["%.12g" % x for x in row]
    print("      {" + ", ".join(cells[:6]) + ",\n       " + ", ".join(cells[6:]) + "},")


def main():
    print("/* Written by optimizers.py with PyTorch %s. */" % torch.__version__.split("+")[0])
    print("/* clang-format off */")
    for name, value in (("RATE", RATE), ("MOMENTUM", MOMENTUM), ("BETA1", BETA1), ("BETA2", BETA2),
                        ("EPSILON", EPSILON), ("DECAY", DECAYS[1])):
        print("#define GOLDEN_%-8s %sf" % (name, "%.9g" % value))
    print("#define GOLDEN_WEIGHTS  %d" % WEIGHTS)
    print("static const int golden_steps[] = {%s};" % ", ".join(map(str, STEPS)))
    print("static const struct golden {\n    enum optimizer_type type;\n    bool decays;")
    print("    double weights[%d][GOLDEN_WEIGHTS]; /* after so many steps */\n} golden[] = {" % len(STEPS))
    for name in optimizers(torch.zeros(1), 0):
        for decay in DECAYS:
            print("    {OPTIMIZER_%s, %s,\n     {" % (name, "true" if decay else "false"))
            for row in run(name, decay):
                print_row(row)
            print("     }},")
    print("};\n/* clang-format on */")


main()
