"""The names of files in a run's folder."""

LOCK, LOG, STEPS = ".lock", "log.jsonl", "steps.jsonl"
CONFIG, FLAGS = "config.json", "config.toml"
TEST_CACHE, TRAIN_CACHE = "test.images.npz", "train.images.npz"
LATENT_CACHE = "latents.safetensors"
CACHES = (TEST_CACHE, TRAIN_CACHE, "test.images.tar.npz", "train.images.tar.npz")
"""The manifest caches of images, and the indexes of tar files."""
