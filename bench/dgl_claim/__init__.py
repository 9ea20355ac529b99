"""DGL's claim, tried fairly on a small scale: does a teacher's discriminator help a narrow student, and does it help because it is the teacher's?

    python -m bench.dgl_claim --out runs/claim

All arms of a seed start from one student, trained without guidance, and see the same further images in the same order with the same random
inputs; they differ by what the generator learns from besides its own discriminator.
"""
