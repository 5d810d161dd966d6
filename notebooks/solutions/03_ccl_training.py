"""Solutions of the exercises of notebook 03."""

import torch


def my_assign(prototypes, features):
    # the length of a feature scales its whole row of cosines, so only the prototypes need unit
    # length
    T = prototypes / prototypes.norm(dim=1, keepdim=True)
    return (features @ T.T).argmax(1)


def my_l_max(prototypes, features, codes):
    return (1 - torch.cosine_similarity(features, prototypes[codes])).mean()


def my_l_pull(prototypes, codes, labels):
    T = prototypes / prototypes.norm(dim=1, keepdim=True)
    cos = T[codes] @ T[codes].T  # [B, B]: of the prototypes that stand for two masks
    pair = (labels[:, None] == labels[None]) & (labels[:, None] != -1)
    pair = pair & ~torch.eye(len(labels), dtype=torch.bool)  # a mask is no pair with itself
    return ((1 - cos) * pair).sum() / pair.sum().clamp_min(1)  # a sum over no pairs is 0


def my_l_push(prototypes, codes, labels, margin):
    T = prototypes / prototypes.norm(dim=1, keepdim=True)
    cos = T[codes] @ T[codes].T
    known = labels != -1
    pair = (labels[:, None] != labels[None]) & known[:, None] & known[None]
    return (torch.relu(cos - margin) * pair).sum() / pair.sum().clamp_min(1)
