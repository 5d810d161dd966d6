"""Solutions of the exercises of notebook 04."""

import torch


def my_weights(alphas):
    # what reaches a Gaussian is what all before it let through; nothing stands before the first
    through = torch.cumprod(1 - alphas, 0)
    return alphas * torch.cat([torch.ones_like(alphas[:1]), through[:-1]])


def my_bag(features, ids, weights):
    return (features[ids] * weights[..., None]).sum(1)  # [P, K, d] -> [P, d]
