"""Declares the operators that the Python part of torchvision looks for on import: for the tests of timm only."""

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # kept: its declarations end with it
LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
