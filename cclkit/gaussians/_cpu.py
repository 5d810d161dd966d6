"""The CPU back end: numba kernels for projection, tile lists and blending.

Shape of the computation (all of it the same bits, whatever the number of threads):
  project   one Gaussian at a time: EWA projection and SH colour, forward and hand-derived backward
  tiles     which 16x16 tiles each Gaussian touches, as depth-sorted lists per tile
  blend     one tile at a time, Gaussians outside, pixels inside (so that pixels vectorise)
Gradients of blending are written once per (Gaussian, tile) pair and then summed per Gaussian
in the order of its tiles: no atomic adds, no dependence on scheduling.

The constants are gsplat's (v1.5), so that both back ends draw the same picture.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload

TILE = 16
"""Tile edge in pixels."""
PIXELS = TILE * TILE
EPS2D = 0.3
"""Added to both diagonal entries of the 2D covariance (pixels²): no Gaussian is thinner than a
pixel.
"""
NEAR = 0.01
"""Gaussians nearer than this (world units) are not drawn."""
CLAMP = 0.15
"""x/z and y/z in the Jacobian are clamped to the image plus this share of its size on each side."""
ALPHA_MIN = 1.0 / 255.0
ALPHA_MAX = 0.999
T_STOP = 1e-4
"""A Gaussian that would bring the transmittance to this or below is not drawn and ends the
pixel.
"""
MAX_SIGMA = 3.33
"""Beyond this many standard deviations any alpha is below ALPHA_MIN."""
TILE_SLACK = 0.01
"""Added to the largest drawn power in the exact ellipse test: covers float32 rounding of the
power.
"""
BLOCK = 256
"""Gaussians per parallel work item of the projection."""


def _jit(**options):
    """njit with the compiled code cached on disk, or without a cache where no folder is
    writable.
    """

    def wrap(function):
        try:
            return njit(cache=True, error_model="numpy", **options)(function)
        except RuntimeError:  # numba: "cannot cache function: no locator available"
            return njit(error_model="numpy", **options)(function)

    return wrap


# --------------------------------------------------------------------------- threads
# Not numba's parallel=True: its OpenMP and torch's are two pools that spin-wait for each other's
# cores (measured: 12 ms per kernel on 2 cores, 12x slower training), and its work queue aborts the
# process when two Python threads use it. Compiled code releases the GIL, so plain threads will do.
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def run(kernel, *args) -> None:
    """Call kernel(*args, part, parts) on as many threads as torch uses (torch.set_num_threads)."""
    parts = torch.get_num_threads()
    if parts not in _pools:
        _pools[parts] = ThreadPoolExecutor(max(parts - 1, 1), thread_name_prefix="cclkit")
    others = [_pools[parts].submit(kernel, *args, part, parts) for part in range(1, parts)]
    try:
        kernel(*args, 0, parts)
    finally:
        for other in others:
            other.result()


# --------------------------------------------------------------------------- exp(-x)
# numba calls libm one value at a time; this polynomial vectorises. exp(-x) = p(-x/8)^8 with p the
# Taylor series about -1/2; for x in [0, 8] the relative error is below 1e-6 (float32 rounding).
_C = [np.float32(math.exp(-0.5) / math.factorial(i)) for i in range(9)]
_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8 = _C
_F8, _HALF, _EIGHTH = np.float32(8.0), np.float32(0.5), np.float32(0.125)


def _exp_neg(x):
    """exp(-x) for x >= 0; anything beyond 8 counts as 8 (below every alpha threshold)."""
    raise NotImplementedError("compiled code only")


@overload(_exp_neg, inline="always")
def _exp_neg_overload(x):
    if x == types.float32:

        def impl(x):
            r = _HALF - min(x, _F8) * _EIGHTH
            p = _C0 + r * (
                _C1
                + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * (_C7 + r * _C8))))))
            )
            p = p * p
            p = p * p
            return p * p

        return impl

    def impl64(x):
        return math.exp(-x)

    return impl64


# --------------------------------------------------------------------------- projection
@_jit(inline="always")
def _rotation(w, x, y, z):
    """Rotation matrix of a unit quaternion, row by row."""
    return (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )


@_jit()
def _sh_basis(K, x, y, z, b):
    """Real SH basis of 3D Gaussian Splatting at a unit direction -> b [K]."""
    b[0] = 0.28209479177387814
    if K > 1:
        b[1] = -0.4886025119029199 * y
        b[2] = 0.4886025119029199 * z
        b[3] = -0.4886025119029199 * x
    if K > 4:
        b[4] = 1.0925484305920792 * x * y
        b[5] = -1.0925484305920792 * y * z
        b[6] = 0.31539156525252005 * (2 * z * z - x * x - y * y)
        b[7] = -1.0925484305920792 * x * z
        b[8] = 0.5462742152960396 * (x * x - y * y)
    if K > 9:
        b[9] = -0.5900435899266435 * y * (3 * x * x - y * y)
        b[10] = 2.890611442640554 * x * y * z
        b[11] = -0.4570457994644658 * y * (4 * z * z - x * x - y * y)
        b[12] = 0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y)
        b[13] = -0.4570457994644658 * x * (4 * z * z - x * x - y * y)
        b[14] = 1.445305721320277 * z * (x * x - y * y)
        b[15] = -0.5900435899266435 * x * (x * x - 3 * y * y)


@_jit()
def _sh_basis_gradient(K, x, y, z, d):
    """Derivative of the basis polynomials by x, y, z -> d [K, 3]."""
    d[0, 0] = d[0, 1] = d[0, 2] = 0.0
    if K > 1:
        d[1, 0], d[1, 1], d[1, 2] = 0.0, -0.4886025119029199, 0.0
        d[2, 0], d[2, 1], d[2, 2] = 0.0, 0.0, 0.4886025119029199
        d[3, 0], d[3, 1], d[3, 2] = -0.4886025119029199, 0.0, 0.0
    if K > 4:
        a = 1.0925484305920792
        d[4, 0], d[4, 1], d[4, 2] = a * y, a * x, 0.0
        d[5, 0], d[5, 1], d[5, 2] = 0.0, -a * z, -a * y
        a = 0.31539156525252005
        d[6, 0], d[6, 1], d[6, 2] = -2 * a * x, -2 * a * y, 4 * a * z
        a = 1.0925484305920792
        d[7, 0], d[7, 1], d[7, 2] = -a * z, 0.0, -a * x
        a = 0.5462742152960396
        d[8, 0], d[8, 1], d[8, 2] = 2 * a * x, -2 * a * y, 0.0
    if K > 9:
        a = -0.5900435899266435
        d[9, 0], d[9, 1], d[9, 2] = 6 * a * x * y, a * (3 * x * x - 3 * y * y), 0.0
        a = 2.890611442640554
        d[10, 0], d[10, 1], d[10, 2] = a * y * z, a * x * z, a * x * y
        a = -0.4570457994644658
        d[11, 0], d[11, 1], d[11, 2] = (
            -2 * a * x * y,
            a * (4 * z * z - x * x - 3 * y * y),
            8 * a * y * z,
        )
        a = 0.3731763325901154
        d[12, 0], d[12, 1], d[12, 2] = (
            -6 * a * x * z,
            -6 * a * y * z,
            a * (6 * z * z - 3 * x * x - 3 * y * y),
        )
        a = -0.4570457994644658
        d[13, 0], d[13, 1], d[13, 2] = (
            a * (4 * z * z - 3 * x * x - y * y),
            -2 * a * x * y,
            8 * a * x * z,
        )
        a = 1.445305721320277
        d[14, 0], d[14, 1], d[14, 2] = 2 * a * x * z, -2 * a * y * z, a * (x * x - y * y)
        a = -0.5900435899266435
        d[15, 0], d[15, 1], d[15, 2] = a * (3 * x * x - 3 * y * y), -6 * a * x * y, 0.0


@_jit(nogil=True)
def project_forward(
    means,  # [G, 3]
    quats,  # [G, 4]
    log_scales,  # [G, 3]
    logits,  # [G]
    sh,  # [G, K', 3]
    K,  # number of SH coefficients used, <= K'
    R,  # [3, 3] float64 world-to-camera rotation
    t,  # [3] float64
    intrinsics,  # [4] float64 fx fy cx cy
    width,
    height,
    means2d,  # [G, 2] out, pixels
    conics,  # [G, 3] out, inverse 2D covariance: xx, xy, yy
    opacities,  # [G] out
    depths,  # [G] out, camera z
    colors,  # [G, 3] out
    radii,  # [G, 2] int32 out, 0 = not visible
    bad,  # [G] uint8 out, 1 = NaN, inf or a zero quaternion
    part,
    parts,
):
    """Project every Gaussian; arithmetic in float64, results in the dtype of the outputs.

    One long function, because each result builds on those before it: as functions of their own, the
    steps would hand on a dozen numbers of every Gaussian from one to the next.
    """
    G = means.shape[0]
    fx, fy, cx, cy = intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]
    # camera centre = -R^T t, for view directions
    ex = -(R[0, 0] * t[0] + R[1, 0] * t[1] + R[2, 0] * t[2])
    ey = -(R[0, 1] * t[0] + R[1, 1] * t[1] + R[2, 1] * t[2])
    ez = -(R[0, 2] * t[0] + R[1, 2] * t[1] + R[2, 2] * t[2])
    u_min, u_max = -(cx + CLAMP * width) / fx, (width - cx + CLAMP * width) / fx
    v_min, v_max = -(cy + CLAMP * height) / fy, (height - cy + CLAMP * height) / fy
    for block in range(part, (G + BLOCK - 1) // BLOCK, parts):
        basis = np.empty(16)
        U = np.empty((3, 3))
        for g in range(block * BLOCK, min(G, block * BLOCK + BLOCK)):
            m0, m1, m2 = np.float64(means[g, 0]), np.float64(means[g, 1]), np.float64(means[g, 2])
            q0, q1, q2, q3 = (
                np.float64(quats[g, 0]),
                np.float64(quats[g, 1]),
                np.float64(quats[g, 2]),
                np.float64(quats[g, 3]),
            )
            s0, s1, s2 = (
                math.exp(np.float64(log_scales[g, 0])),
                math.exp(np.float64(log_scales[g, 1])),
                math.exp(np.float64(log_scales[g, 2])),
            )
            n = math.sqrt(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3)
            opacity = 1.0 / (1.0 + math.exp(-np.float64(logits[g])))
            total = m0 + m1 + m2 + n + s0 + s1 + s2 + np.float64(logits[g])
            for k in range(K):
                total += np.float64(sh[g, k, 0]) + np.float64(sh[g, k, 1]) + np.float64(sh[g, k, 2])
            bad[g] = 0 if (math.isfinite(total) and n > 0) else 1

            x = R[0, 0] * m0 + R[0, 1] * m1 + R[0, 2] * m2 + t[0]
            y = R[1, 0] * m0 + R[1, 1] * m1 + R[1, 2] * m2 + t[1]
            z = R[2, 0] * m0 + R[2, 1] * m1 + R[2, 2] * m2 + t[2]
            depths[g] = z
            opacities[g] = opacity
            radii[g, 0] = radii[g, 1] = 0
            if bad[g] or z <= NEAR:
                means2d[g, 0] = means2d[g, 1] = 0
                conics[g, 0] = conics[g, 2] = 1
                conics[g, 1] = 0
                colors[g, 0] = colors[g, 1] = colors[g, 2] = 0
                continue

            # 2D covariance = V V^T + eps I with V = J R Rq S  [2, 3]
            r = _rotation(q0 / n, q1 / n, q2 / n, q3 / n)
            for i in range(3):
                U[i, 0] = (R[i, 0] * r[0] + R[i, 1] * r[3] + R[i, 2] * r[6]) * s0
                U[i, 1] = (R[i, 0] * r[1] + R[i, 1] * r[4] + R[i, 2] * r[7]) * s1
                U[i, 2] = (R[i, 0] * r[2] + R[i, 1] * r[5] + R[i, 2] * r[8]) * s2
            u = min(max(x / z, u_min), u_max)
            v = min(max(y / z, v_min), v_max)
            a = c = EPS2D
            b = 0.0
            for j in range(3):
                v0 = fx / z * (U[0, j] - u * U[2, j])
                v1 = fy / z * (U[1, j] - v * U[2, j])
                a += v0 * v0
                b += v0 * v1
                c += v1 * v1
            det = a * c - b * b
            px, py = fx * x / z + cx, fy * y / z + cy
            means2d[g, 0] = px
            means2d[g, 1] = py
            conics[g, 0] = c / det
            conics[g, 1] = -b / det
            conics[g, 2] = a / det

            dx, dy, dz = m0 - ex, m1 - ey, m2 - ez
            length = max(math.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
            _sh_basis(K, dx / length, dy / length, dz / length, basis)
            for ch in range(3):
                value = 0.5
                for k in range(K):
                    value += basis[k] * np.float64(sh[g, k, ch])
                colors[g, ch] = max(value, 0.0)

            if opacity >= ALPHA_MIN:
                extent = min(MAX_SIGMA, math.sqrt(2.0 * math.log(opacity / ALPHA_MIN)))
                # at least 1: a Gaussian exactly at the threshold is still drawn at its centre
                rx = max(math.ceil(extent * math.sqrt(a)), 1.0)
                ry = max(math.ceil(extent * math.sqrt(c)), 1.0)
                if px + rx > 0 and px - rx < width and py + ry > 0 and py - ry < height:
                    radii[g, 0] = np.int32(min(rx, 1e9))
                    radii[g, 1] = np.int32(min(ry, 1e9))


@_jit(nogil=True)
def project_backward(
    means,  # [G, 3]
    quats,  # [G, 4]
    log_scales,  # [G, 3]
    logits,  # [G]
    sh,  # [G, K', 3]
    K,
    R,  # [3, 3]
    t,  # [3]
    intrinsics,  # [4]
    width,
    height,
    radii,  # [G, 2] int32
    g_means2d,  # [G, 2] gradients of the outputs of project_forward
    g_conics,  # [G, 3]
    g_opacities,  # [G]
    g_depths,  # [G]
    g_colors,  # [G, 3]
    o_means,  # [G, 3] out, zero on entry: gradients of its inputs
    o_quats,  # [G, 4] out
    o_log_scales,  # [G, 3] out
    o_logits,  # [G] out
    o_sh,  # [G, K', 3] out
    part,
    parts,
):
    """Chain rule of project_forward, in reverse order of its lines. Invisible Gaussians get zeros.

    Long as project_forward is, and for the same reason: it computes what that one did once more,
    and every gradient uses several of those numbers.
    """
    G = means.shape[0]
    fx, fy, cx, cy = intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]
    ex = -(R[0, 0] * t[0] + R[1, 0] * t[1] + R[2, 0] * t[2])
    ey = -(R[0, 1] * t[0] + R[1, 1] * t[1] + R[2, 1] * t[2])
    ez = -(R[0, 2] * t[0] + R[1, 2] * t[1] + R[2, 2] * t[2])
    u_min, u_max = -(cx + CLAMP * width) / fx, (width - cx + CLAMP * width) / fx
    v_min, v_max = -(cy + CLAMP * height) / fy, (height - cy + CLAMP * height) / fy
    for block in range(part, (G + BLOCK - 1) // BLOCK, parts):
        basis = np.empty(16)
        dbasis = np.empty((16, 3))
        U, V, gV, gU, gR = (
            np.empty((3, 3)),
            np.empty((2, 3)),
            np.empty((2, 3)),
            np.empty((3, 3)),
            np.empty((3, 3)),
        )
        rot = np.empty((3, 3))
        s = np.empty(3)
        for g in range(block * BLOCK, min(G, block * BLOCK + BLOCK)):
            if radii[g, 0] <= 0:
                continue
            m0, m1, m2 = np.float64(means[g, 0]), np.float64(means[g, 1]), np.float64(means[g, 2])
            q0, q1, q2, q3 = (
                np.float64(quats[g, 0]),
                np.float64(quats[g, 1]),
                np.float64(quats[g, 2]),
                np.float64(quats[g, 3]),
            )
            n = math.sqrt(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3)
            q0, q1, q2, q3 = q0 / n, q1 / n, q2 / n, q3 / n
            x = R[0, 0] * m0 + R[0, 1] * m1 + R[0, 2] * m2 + t[0]
            y = R[1, 0] * m0 + R[1, 1] * m1 + R[1, 2] * m2 + t[1]
            z = R[2, 0] * m0 + R[2, 1] * m1 + R[2, 2] * m2 + t[2]
            r = _rotation(q0, q1, q2, q3)
            rot[0, 0], rot[0, 1], rot[0, 2] = r[0], r[1], r[2]
            rot[1, 0], rot[1, 1], rot[1, 2] = r[3], r[4], r[5]
            rot[2, 0], rot[2, 1], rot[2, 2] = r[6], r[7], r[8]
            for j in range(3):
                s[j] = math.exp(np.float64(log_scales[g, j]))
                for i in range(3):
                    U[i, j] = R[i, 0] * rot[0, j] + R[i, 1] * rot[1, j] + R[i, 2] * rot[2, j]
                    U[i, j] *= s[j]
            u = min(max(x / z, u_min), u_max)
            v = min(max(y / z, v_min), v_max)
            a = c = EPS2D
            b = 0.0
            for j in range(3):
                V[0, j] = fx / z * (U[0, j] - u * U[2, j])
                V[1, j] = fy / z * (U[1, j] - v * U[2, j])
                a += V[0, j] * V[0, j]
                b += V[0, j] * V[1, j]
                c += V[1, j] * V[1, j]
            det = a * c - b * b
            A, B, C = c / det, -b / det, a / det

            # opacity
            opacity = 1.0 / (1.0 + math.exp(-np.float64(logits[g])))
            o_logits[g] = np.float64(g_opacities[g]) * opacity * (1.0 - opacity)

            # conic = inverse of the covariance: d cov = -Q (d Q) Q
            gA, gB, gC = (
                np.float64(g_conics[g, 0]),
                0.5 * np.float64(g_conics[g, 1]),
                np.float64(g_conics[g, 2]),
            )
            h00, h01 = gA * A + gB * B, gA * B + gB * C
            h10, h11 = gB * A + gC * B, gB * B + gC * C
            ga = -(A * h00 + B * h10)
            gb = -(A * h01 + B * h11)  # one of the two equal off-diagonal entries
            gc = -(B * h01 + C * h11)

            # cov = V V^T, V = J U, J rows (fx/z)(1, 0, -u) and (fy/z)(0, 1, -v)
            g_z = np.float64(g_depths[g])
            g_u = 0.0
            g_v = 0.0
            for j in range(3):
                gV[0, j] = 2.0 * (ga * V[0, j] + gb * V[1, j])
                gV[1, j] = 2.0 * (gb * V[0, j] + gc * V[1, j])
                gU[0, j] = fx / z * gV[0, j]
                gU[1, j] = fy / z * gV[1, j]
                gU[2, j] = -u * gU[0, j] - v * gU[1, j]
                g_u -= gU[0, j] * U[2, j]
                g_v -= gU[1, j] * U[2, j]
                g_z -= (gV[0, j] * V[0, j] + gV[1, j] * V[1, j]) / z
            # mean2d, and the Jacobian where it is not clamped
            gx = fx * np.float64(g_means2d[g, 0])
            gy = fy * np.float64(g_means2d[g, 1])
            if u_min <= x / z <= u_max:
                gx += g_u
            if v_min <= y / z <= v_max:
                gy += g_v
            gx, gy = gx / z, gy / z
            g_z -= (gx * x + gy * y) / z

            # U = R rot diag(s)
            for i in range(3):
                for j in range(3):
                    gR[i, j] = R[0, i] * gU[0, j] + R[1, i] * gU[1, j] + R[2, i] * gU[2, j]
            for j in range(3):
                g_s = gR[0, j] * rot[0, j] + gR[1, j] * rot[1, j] + gR[2, j] * rot[2, j]
                o_log_scales[g, j] = g_s * s[j]
                for i in range(3):
                    gR[i, j] *= s[j]
            p0 = 2.0 * (
                q1 * (gR[2, 1] - gR[1, 2]) + q2 * (gR[0, 2] - gR[2, 0]) + q3 * (gR[1, 0] - gR[0, 1])
            )
            p1 = 2.0 * (
                q2 * (gR[0, 1] + gR[1, 0])
                + q3 * (gR[0, 2] + gR[2, 0])
                + q0 * (gR[2, 1] - gR[1, 2])
                - 2.0 * q1 * (gR[1, 1] + gR[2, 2])
            )
            p2 = 2.0 * (
                q1 * (gR[0, 1] + gR[1, 0])
                + q3 * (gR[1, 2] + gR[2, 1])
                + q0 * (gR[0, 2] - gR[2, 0])
                - 2.0 * q2 * (gR[0, 0] + gR[2, 2])
            )
            p3 = 2.0 * (
                q1 * (gR[0, 2] + gR[2, 0])
                + q2 * (gR[1, 2] + gR[2, 1])
                + q0 * (gR[1, 0] - gR[0, 1])
                - 2.0 * q3 * (gR[0, 0] + gR[1, 1])
            )
            # the length of a quaternion has no effect
            along = p0 * q0 + p1 * q1 + p2 * q2 + p3 * q3
            o_quats[g, 0] = (p0 - along * q0) / n
            o_quats[g, 1] = (p1 - along * q1) / n
            o_quats[g, 2] = (p2 - along * q2) / n
            o_quats[g, 3] = (p3 - along * q3) / n

            # colour
            dx, dy, dz = m0 - ex, m1 - ey, m2 - ez
            length = max(math.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
            dx, dy, dz = dx / length, dy / length, dz / length
            _sh_basis(K, dx, dy, dz, basis)
            _sh_basis_gradient(K, dx, dy, dz, dbasis)
            d0 = d1 = d2 = 0.0
            for ch in range(3):
                value = 0.5
                for k in range(K):
                    value += basis[k] * np.float64(sh[g, k, ch])
                if value <= 0:
                    continue
                g_c = np.float64(g_colors[g, ch])
                for k in range(K):
                    o_sh[g, k, ch] = g_c * basis[k]
                    coefficient = g_c * np.float64(sh[g, k, ch])
                    d0 += coefficient * dbasis[k, 0]
                    d1 += coefficient * dbasis[k, 1]
                    d2 += coefficient * dbasis[k, 2]
            along = d0 * dx + d1 * dy + d2 * dz  # moving along the view ray has no effect
            o_means[g, 0] = R[0, 0] * gx + R[1, 0] * gy + R[2, 0] * g_z + (d0 - along * dx) / length
            o_means[g, 1] = R[0, 1] * gx + R[1, 1] * gy + R[2, 1] * g_z + (d1 - along * dy) / length
            o_means[g, 2] = R[0, 2] * gx + R[1, 2] * gy + R[2, 2] * g_z + (d2 - along * dz) / length


# --------------------------------------------------------------------------- tile lists
@_jit(inline="always")
def _touches(mx, my, A, B, C, limit, x0, x1, y0, y1):
    """Does the ellipse power <= limit reach the rectangle of pixel centres [x0, x1] x [y0, y1]?

    A convex quadratic takes its minimum over a rectangle at the centre if that is inside, else on
    an edge that faces the centre.
    """
    nx = min(max(mx, x0), x1)
    ny = min(max(my, y0), y1)
    if nx == mx and ny == my:
        return True
    if nx != mx:
        dx = nx - mx
        dy = min(max(-B * dx / C, y0 - my), y1 - my)
        if 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy <= limit:
            return True
    if ny != my:
        dy = ny - my
        dx = min(max(-B * dy / A, x0 - mx), x1 - mx)
        if 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy <= limit:
            return True
    return False


@_jit(nogil=True)
def tile_scan(
    means2d,  # [G, 2]
    conics,  # [G, 3]
    opacities,  # [G]
    radii,  # [G, 2] int32
    width,
    height,
    start,  # [G + 1] int64: where the slots of a Gaussian begin (read when fill)
    count,  # [G] int64 out: tiles touched
    reach,  # [G] out: half the height of the drawn ellipse, pixels
    slot_tile,  # [n] int32 out when fill: tile of each slot, Gaussian by Gaussian
    fill,
    part,
    parts,
):
    """Count (fill False) or list (fill True) the tiles in which a Gaussian has
    alpha >= ALPHA_MIN.
    """
    G = means2d.shape[0]
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    for block in range(part, (G + BLOCK - 1) // BLOCK, parts):
        for g in range(block * BLOCK, min(G, block * BLOCK + BLOCK)):
            if radii[g, 0] <= 0:
                count[g] = 0
                continue
            mx, my = np.float64(means2d[g, 0]), np.float64(means2d[g, 1])
            A, B, C = np.float64(conics[g, 0]), np.float64(conics[g, 1]), np.float64(conics[g, 2])
            limit = math.log(np.float64(opacities[g]) / ALPHA_MIN) + TILE_SLACK
            det = max(A * C - B * B, 1e-30)
            rx = min(math.sqrt(2.0 * limit * C / det), 1e7)
            ry = min(math.sqrt(2.0 * limit * A / det), 1e7)
            reach[g] = ry
            # tiles whose pixel centres lie within the bounding box of the ellipse
            tx0 = max(int(math.floor((mx - rx - 0.5) / TILE)), 0)
            tx1 = min(int(math.floor((mx + rx - 0.5) / TILE)), tiles_x - 1)
            ty0 = max(int(math.floor((my - ry - 0.5) / TILE)), 0)
            ty1 = min(int(math.floor((my + ry - 0.5) / TILE)), tiles_y - 1)
            n = 0
            for ty in range(ty0, ty1 + 1):
                for tx in range(tx0, tx1 + 1):
                    x0, y0 = tx * TILE + 0.5, ty * TILE + 0.5
                    x1, y1 = min(x0 + TILE, width + 0.5) - 1.0, min(y0 + TILE, height + 0.5) - 1.0
                    if _touches(mx, my, A, B, C, limit, x0, x1, y0, y1):
                        if fill:
                            slot_tile[start[g] + n] = ty * tiles_x + tx
                        n += 1
            count[g] = n


@_jit(nogil=True)
def tile_sort(
    order,  # [V] int64: visible Gaussians, nearest first
    start,  # [G + 1] int64
    slot_tile,  # [n] int32
    n_tiles,
    tile_start,  # [n_tiles + 1] int64 out
    tile_gaussian,  # [n] int32 out: Gaussians of each tile, nearest first
    tile_slot,  # [n] int64 out: where that pair's gradient is written
):
    """Counting sort of the slots by tile; walking Gaussians by depth makes every list
    depth-sorted.
    """
    next_free = np.zeros(n_tiles + 1, np.int64)
    for i in range(slot_tile.shape[0]):
        next_free[slot_tile[i] + 1] += 1
    for i in range(n_tiles):
        next_free[i + 1] += next_free[i]
    tile_start[:] = next_free
    for i in range(order.shape[0]):
        g = order[i]
        for slot in range(start[g], start[g + 1]):
            p = next_free[slot_tile[slot]]
            next_free[slot_tile[slot]] = p + 1
            tile_gaussian[p] = g
            tile_slot[p] = slot


# --------------------------------------------------------------------------- blending
# No fastmath here: forward, backward and the weights must take the same decisions (skip, stop)
# bit for bit. Only sums over pixels (below) may be reordered by the compiler, alike each time.
#
# The state of a tile lives in ONE flat buffer, plane after plane of 256 pixels, indexed by unsigned
# integers: only then can LLVM prove that the planes do not overlap and no index is negative, and
# vectorise the loops over pixels (8x faster than separate arrays).
_PX, _PY, _T, _LIVE, _W, _ALPHA, _BEFORE, _Q, _H, _BEHIND, _CHANNELS = [
    np.uint64(PIXELS * i) for i in range(11)
]
"""Planes: pixel centre, transmittance, 1 while the pixel is open, alpha T, alpha, and (backward) T
before, g·f, -dL/dpower, the sum behind; then one plane per channel."""


@_jit()
def _plane(c):
    """Where the plane of channel c begins."""
    return _CHANNELS + np.uint64(c * PIXELS)


@_jit(fastmath={"reassoc", "contract", "nsz"})
def _sum(b, plane, lo, hi):
    total = b[0] - b[0]
    for j in range(lo, hi):
        total += b[j + plane]
    return total


@_jit(fastmath={"reassoc", "contract", "nsz"})
def _dot(b, plane, other, lo, hi):
    total = b[0] - b[0]
    for j in range(lo, hi):
        total += b[j + plane] * b[j + other]
    return total


@_jit(fastmath={"reassoc", "contract", "nsz"})
def _moments(b, mx, my, lo, hi):
    """Sums of h, h dx, h dy, h dx², h dx dy, h dy² over pixels, with d = mean - pixel."""
    s = sx = sy = sxx = sxy = syy = b[0] - b[0]
    for j in range(lo, hi):
        h = b[j + _H]
        dx = mx - b[j + _PX]
        dy = my - b[j + _PY]
        hx = h * dx
        hy = h * dy
        s += h
        sx += hx
        sy += hy
        sxx += hx * dx
        sxy += hx * dy
        syy += hy * dy
    return s, sx, sy, sxx, sxy, syy


@_jit()
def _begin_tile(tile, width, height, constants, b):
    """Pixel centres, transmittance 1, and live = 1 for the pixels of a tile that are in the
    image.
    """
    one, half = constants[3], constants[4]
    tiles_x = (width + TILE - 1) // TILE
    x0, y0 = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
    for r in range(TILE):
        for i in range(TILE):
            j = np.uint64(r * TILE + i)
            b[j + _PX] = x0 + i
            b[j + _PX] += half
            b[j + _PY] = y0 + r
            b[j + _PY] += half
            b[j + _T] = one
            b[j + _LIVE] = one if (x0 + i < width and y0 + r < height) else one - one
    return x0, y0, min(TILE, width - x0), min(TILE, height - y0)


@_jit()
def _rows(my, reach, y0, rows):
    """Range of flat pixel indices of the rows of a tile that a Gaussian can reach."""
    lo = max(int(math.floor(my - reach - y0 - 0.5)), 0)
    hi = min(int(math.ceil(my + reach - y0 + 0.5)), rows)
    return np.uint64(lo * TILE), np.uint64(max(hi, lo) * TILE)


@_jit()
def _weights(mx, my, A, B, C, opacity, constants, lo, hi, b):
    """Blend one Gaussian: ALPHA and W = alpha T where it is drawn, else 0; T and LIVE are brought
    up to date.
    """
    alpha_min, alpha_max, stop, one, half = (
        constants[0],
        constants[1],
        constants[2],
        constants[3],
        constants[4],
    )
    zero = one - one
    hA = half * A
    hC = half * C
    for j in range(lo, hi):
        dx = mx - b[j + _PX]
        dy = my - b[j + _PY]
        power = (hA * dx * dx + hC * dy * dy) + B * dx * dy
        alpha = opacity * _exp_neg(power)
        alpha = alpha if alpha < alpha_max else alpha_max
        T = b[j + _T]
        after = T * (one - alpha)
        # & rather than `and`: a branch would keep the loop from vectorising
        seen = (alpha >= alpha_min) & (power >= zero) & (b[j + _LIVE] > zero)
        draw = seen & (after > stop)
        drawn = alpha if draw else zero
        b[j + _ALPHA] = drawn
        b[j + _W] = drawn * T
        b[j + _T] = after if draw else T
        b[j + _LIVE] = zero if (seen & (after <= stop)) else b[j + _LIVE]


@_jit(nogil=True)
def blend_forward(
    tile_start,  # [tiles + 1] int64
    tile_gaussian,  # [n] int32
    means2d,  # [G, 2]
    conics,  # [G, 3]
    opacities,  # [G]
    reach,  # [G]
    features,  # [G, C]
    constants,  # [5] ALPHA_MIN, ALPHA_MAX, T_STOP, 1, 0.5 in the dtype of the data
    width,
    height,
    image,  # [H, W, C] out: sum of alpha T f
    remaining,  # [H, W] out: final transmittance
    part,
    parts,
):
    """Blend the features of the Gaussians along every tile's list, nearest first."""
    channels = features.shape[1]
    # interleaved: a fair share of busy regions
    for tile in range(part, tile_start.shape[0] - 1, parts):
        b = np.zeros(PIXELS * (10 + channels), means2d.dtype)
        everything = np.uint64(PIXELS)
        nothing = np.uint64(0)
        x0, y0, columns, rows = _begin_tile(tile, width, height, constants, b)
        for p in range(tile_start[tile], tile_start[tile + 1]):
            g = tile_gaussian[p]
            lo, hi = _rows(means2d[g, 1], reach[g], y0, rows)
            _weights(
                means2d[g, 0],
                means2d[g, 1],
                conics[g, 0],
                conics[g, 1],
                conics[g, 2],
                opacities[g],
                constants,
                lo,
                hi,
                b,
            )
            for c in range(channels):
                f = features[g, c]
                plane = _plane(c)
                for j in range(lo, hi):
                    b[j + plane] += b[j + _W] * f
            if p % 16 == 0 and _sum(b, _LIVE, nothing, everything) == 0:
                break
        for r in range(rows):
            for i in range(columns):
                j = np.uint64(r * TILE + i)
                remaining[y0 + r, x0 + i] = b[j + _T]
                for c in range(channels):
                    image[y0 + r, x0 + i, c] = b[j + _plane(c)]


@_jit(nogil=True)
def blend_backward(
    tile_start,  # [tiles + 1] int64
    tile_gaussian,  # [n] int32
    tile_slot,  # [n] int64
    means2d,  # [G, 2]
    conics,  # [G, 3]
    opacities,  # [G]
    reach,  # [G]
    features,  # [G, C]
    constants,  # [5]
    width,
    height,
    image,  # [H, W, C] result of blend_forward
    remaining,  # [H, W]
    g_image,  # [H, W, C] gradient of image
    g_alpha,  # [H, W] gradient of 1 - remaining
    geometry,  # bool: False = gradients of features only
    # [n, 6 + C] out, zero on entry: per (Gaussian, tile), gradients of mean2d, conic, opacity,
    # features
    slots,
    part,
    parts,
):
    """Walks the lists front to back like the forward pass, so that T is the same bit for bit.

    With w = alpha T, q = g·f, and S = sum of w q over the Gaussians behind:
    dL/dalpha = T q - (S - g_alpha T_final) / (1 - alpha). S starts as g·image and loses w q per
    step.

    One long function because most of it loops over the same pixels of the same buffer: the sums
    that could stand apart do (`_dot`, `_moments`).
    """
    channels = features.shape[1]
    # interleaved: a fair share of busy regions
    for tile in range(part, tile_start.shape[0] - 1, parts):
        alpha_max, one, half = constants[1], constants[3], constants[4]
        zero = one - one
        b = np.zeros(PIXELS * (10 + channels), means2d.dtype)
        everything = np.uint64(PIXELS)
        nothing = np.uint64(0)
        x0, y0, columns, rows = _begin_tile(tile, width, height, constants, b)
        for r in range(rows):
            for i in range(columns):
                j = np.uint64(r * TILE + i)
                total = -g_alpha[y0 + r, x0 + i] * remaining[y0 + r, x0 + i]
                for c in range(channels):
                    b[j + _plane(c)] = g_image[y0 + r, x0 + i, c]
                    total += g_image[y0 + r, x0 + i, c] * image[y0 + r, x0 + i, c]
                b[j + _BEHIND] = total
        for p in range(tile_start[tile], tile_start[tile + 1]):
            g = tile_gaussian[p]
            slot = tile_slot[p]
            mx, my = means2d[g, 0], means2d[g, 1]
            A, B, C = conics[g, 0], conics[g, 1], conics[g, 2]
            lo, hi = _rows(my, reach[g], y0, rows)
            if geometry:
                for j in range(lo, hi):
                    b[j + _BEFORE] = b[j + _T]
                    b[j + _Q] = zero
            _weights(mx, my, A, B, C, opacities[g], constants, lo, hi, b)
            if _sum(b, _W, lo, hi) > zero:
                for c in range(channels):
                    slots[slot, 6 + c] = _dot(b, _W, _plane(c), lo, hi)
                if geometry:
                    for c in range(channels):
                        f = features[g, c]
                        plane = _plane(c)
                        for j in range(lo, hi):
                            b[j + _Q] += f * b[j + plane]
                    for j in range(lo, hi):
                        alpha = b[j + _ALPHA]
                        q = b[j + _Q]
                        behind = b[j + _BEHIND] - b[j + _W] * q
                        b[j + _BEHIND] = behind
                        d_alpha = b[j + _BEFORE] * q - behind / (one - alpha)
                        # alpha = opacity exp(-power): d alpha / d power = -alpha, or 0 where capped
                        b[j + _H] = -d_alpha * alpha if alpha < alpha_max else zero
                    s, sx, sy, sxx, sxy, syy = _moments(b, mx, my, lo, hi)
                    slots[slot, 0] = A * sx + B * sy
                    slots[slot, 1] = B * sx + C * sy
                    slots[slot, 2] = half * sxx
                    slots[slot, 3] = sxy
                    slots[slot, 4] = half * syy
                    slots[slot, 5] = -s / opacities[g]
            if p % 16 == 0 and _sum(b, _LIVE, nothing, everything) == 0:
                break


@_jit(nogil=True)
def reduce_slots(start, slots, out, part, parts):  # [G + 1] int64, [n, D], [G, D] out
    """Sum the slots of each Gaussian, in the order of its tiles."""
    G = out.shape[0]
    D = out.shape[1]
    for block in range(part, (G + BLOCK - 1) // BLOCK, parts):
        for g in range(block * BLOCK, min(G, block * BLOCK + BLOCK)):
            for d in range(D):
                out[g, d] = 0
            for slot in range(start[g], start[g + 1]):
                for d in range(D):
                    out[g, d] += slots[slot, d]


@_jit(nogil=True)
def top_weights(
    tile_start,  # [tiles + 1] int64
    tile_gaussian,  # [n] int32
    means2d,  # [G, 2]
    conics,  # [G, 3]
    opacities,  # [G]
    reach,  # [G]
    constants,  # [5]
    width,
    pixels,  # [P] int64, y * width + x
    order,  # [P] int64: the pixels tile by tile, rows of a tile from the top
    # [tiles + 1] int64: the pixels of tile i are order[first[i]:first[i + 1]], at most PIXELS
    first,
    k,
    ids,  # [P, k] int32 out, zero on entry
    weights,  # [P, k] float32 out, zero on entry
    mass,  # [P] float32 out, zero on entry: sum of all weights
    part,
    parts,
):
    """The k largest alpha T of some pixels, largest first; of equals, the nearer first."""
    one, half = constants[3], constants[4]
    tiles_x = (width + TILE - 1) // TILE
    # interleaved: a fair share of busy regions
    for tile in range(part, tile_start.shape[0] - 1, parts):
        own = order[first[tile] : first[tile + 1]]
        if len(own) == 0:
            continue
        b = np.zeros(PIXELS * 10, means2d.dtype)
        y0 = (tile // tiles_x) * TILE
        row = np.zeros(TILE + 1, np.int64)  # own pixels above each row
        for n in range(len(own)):
            y, x = pixels[own[n]] // width, pixels[own[n]] % width
            j = np.uint64(n)
            b[j + _PX] = x
            b[j + _PX] += half
            b[j + _PY] = y
            b[j + _PY] += half
            b[j + _T] = b[j + _LIVE] = one
            row[y - y0 + 1 :] += 1
        everything, nothing = np.uint64(len(own)), np.uint64(0)
        for p in range(tile_start[tile], tile_start[tile + 1]):
            g = tile_gaussian[p]
            lo, hi = _rows(means2d[g, 1], reach[g], y0, TILE)
            lo, hi = np.uint64(row[lo // np.uint64(TILE)]), np.uint64(row[hi // np.uint64(TILE)])
            _weights(
                means2d[g, 0],
                means2d[g, 1],
                conics[g, 0],
                conics[g, 1],
                conics[g, 2],
                opacities[g],
                constants,
                lo,
                hi,
                b,
            )
            for n in range(np.int64(lo), np.int64(hi)):
                w = np.float32(b[np.uint64(n) + _W])
                if w <= 0:
                    continue
                i = own[n]
                mass[i] += w
                place = k
                while place > 0 and w > weights[i, place - 1]:
                    if place < k:
                        weights[i, place] = weights[i, place - 1]
                        ids[i, place] = ids[i, place - 1]
                    place -= 1
                if place < k:
                    weights[i, place] = w
                    ids[i, place] = g
            if p % 16 == 0 and _sum(b, _LIVE, nothing, everything) == 0:
                break


# --------------------------------------------------------------------------- cached pixels
@_jit(nogil=True)
def scatter_rows(
    ids, weights, upstream, total, part, parts
):  # [P, K], [P, K], [P, C] -> total [G, C]
    """Gradient of cached pixels: total[i] += weight times the pixel's gradient, for every entry of
    Gaussian i.

    Every part reads all entries and serves its own share of the Gaussians, so a sum has one order
    on any number of threads.
    """
    low, high = len(total) * part // parts, len(total) * (part + 1) // parts
    P, K = ids.shape
    own = np.empty(K, np.int32)
    for p in range(P):
        n = 0
        # first which entries, without a branch: guessing it wrong every other time took longer than
        # the sums
        for k in range(K):
            own[n] = k
            n += (ids[p, k] >= low) & (ids[p, k] < high)
        for k in own[:n]:
            i, w = ids[p, k], weights[p, k]
            for c in range(total.shape[1]):
                total[i, c] += w * upstream[p, c]
