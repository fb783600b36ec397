"""Training throughput and peak memory against the plain Trainer: ViT-S geometry at 112 pixels, same base and data.

Both stages count: half of the timed steps use cross-entropy, half confidence adaptation.
"""

from benchmarks._paired import median_interval, run_python, show

PAIRS = 9

_RUN = """
import json, logging, resource, sys, tempfile, time, warnings
warnings.simplefilter("ignore")
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification
import calor_hf
from calor_hf import CALoRForImageClassification, CALoRTrainer, CALoRTrainingArguments

BATCH, STEPS, CLASSES = 32, 5, 530
torch.manual_seed(0)
images = torch.rand(BATCH, 3, 112, 112)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return BATCH * STEPS
    def __getitem__(self, i):
        return {"pixel_values": images[i % BATCH], "labels": i % CLASSES}

class Clock(TrainerCallback):
    def __init__(self):
        self.steps, self.begin = [], 0.0
    def on_step_begin(self, args, state, control, **kwargs):
        self.begin = time.perf_counter()
    def on_pre_optimizer_step(self, *args, **kwargs):
        pass
    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(time.perf_counter() - self.begin)

config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
                   image_size=112, patch_size=16, num_labels=CLASSES)
base = ViTForImageClassification(config)
clock = Clock()
with tempfile.TemporaryDirectory() as folder:
    common = dict(output_dir=folder, per_device_train_batch_size=BATCH, use_cpu=True, report_to="none",
                  disable_tqdm=True, logging_steps=5, save_strategy="no", dataloader_pin_memory=False)
    if sys.argv[1] == "plain":
        args = TrainingArguments(num_train_epochs=2, **common)
        Trainer(model=base, args=args, train_dataset=Data(), callbacks=[clock]).train()
    else:
        class Timed(CALoRTrainer):  # two stages, no evaluation between them: the plain Trainer has none either
            def is_checkpoint_step(self, step):
                return False
            def _load_result(self, selection):
                pass
        args = CALoRTrainingArguments(num_train_epochs=1, adapt_epochs=1, **common)
        model = CALoRForImageClassification.from_base(base, rank=32)
        Timed(model=model, args=args, train_dataset=Data(), eval_dataset=Data(), callbacks=[clock]).train()
times = sorted(clock.steps[1:])  # the first step allocates
print(json.dumps({"images_per_second": BATCH / times[len(times) // 2],
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def main() -> None:
    """Print the ratios of throughput and of peak memory."""
    speed, memory = [], []
    for index in range(PAIRS):
        order = ("plain", "calor") if index % 2 else ("calor", "plain")
        found = {name: run_python(_RUN, name) for name in order}
        speed.append(found["calor"]["images_per_second"] / found["plain"]["images_per_second"])
        memory.append(found["calor"]["peak_bytes"] / found["plain"]["peak_bytes"])
    show("training images/s, CALoRTrainer / Trainer", median_interval(speed), ">= 0.98")
    show("peak memory of the process, CALoRTrainer / Trainer", median_interval(memory), "<= 1.02")
