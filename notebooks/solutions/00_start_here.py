"""Solutions of the exercises of notebook 00."""


def my_projection(K, world_to_camera, points):
    # rows are points, so the rotation stands on the right, transposed
    camera = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    return camera[:, :2] / camera[:, 2:] * K.diagonal()[:2] + K[:2, 2]
