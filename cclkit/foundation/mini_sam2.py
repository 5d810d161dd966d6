"""A small SAM2: the package's own `SAM2VideoPredictor`, memory and decoder, on mini-SAM's pyramid.

`sam2_hiera_t`'s configuration at 256 pixels and 64 channels. The image trunk is mini-SAM's instead
of a Hiera, so that tracking starts from an encoder that already tells objects apart.
"""

from __future__ import annotations

from ..errors import needed
from .pyramid import Pyramid

IMAGE_SIZE, FOLLOW_SIZE = 256, 320
"""Pixels a side in training, and when views are followed. On four orbits of seeds that neither
trained nor score the weights, J was .42 at 256, .46 at 320, .45 at 352 and .44 at 384: small
regions gain from larger maps.
"""
WIDTH = 64
STRIDE = 16
"""Of the maps that memory attends over; masks come at a quarter of it."""
MEMORIES = 5
"""Frames remembered: the first, and the last four. sam2's own models keep seven; each costs as much
as the frame itself.
"""


def build_mini_sam2(image_size: int = IMAGE_SIZE):
    """The architecture, with fresh weights from torch's global generator (seed it for training), on
    the CPU. Long, because it is the package's configuration written out.

    Raises MissingPackageError without sam2.
    """
    with needed("sam2"):
        from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
        from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
        from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
        from sam2.modeling.position_encoding import PositionEmbeddingSine
        from sam2.modeling.sam.transformer import RoPEAttention
        from sam2.sam2_video_predictor import SAM2VideoPredictor

    def place() -> PositionEmbeddingSine:
        return PositionEmbeddingSine(
            num_pos_feats=WIDTH, normalize=True, scale=None, temperature=10000
        )

    def attention(**more) -> RoPEAttention:
        side = image_size // STRIDE
        return RoPEAttention(
            rope_theta=10000.0,
            feat_sizes=[side, side],
            embedding_dim=WIDTH,
            num_heads=1,
            downsample_rate=1,
            dropout=0.0,
            **more,
        )

    trunk = Pyramid()
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=4 * WIDTH,
        dropout=0.0,
        pos_enc_at_attn=False,
        self_attention=attention(),
        d_model=WIDTH,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=attention(rope_k_repeat=True, kv_in_dim=WIDTH),
    )
    return SAM2VideoPredictor(
        image_encoder=ImageEncoder(
            scalp=1,
            trunk=trunk,
            neck=FpnNeck(
                position_encoding=place(),
                d_model=WIDTH,
                backbone_channel_list=trunk.channel_list,
                fpn_top_down_levels=[2, 3],
                fpn_interp_model="nearest",
            ),
        ),
        memory_attention=MemoryAttention(
            d_model=WIDTH, pos_enc_at_input=True, layer=layer, num_layers=2
        ),
        memory_encoder=MemoryEncoder(
            out_dim=WIDTH,
            in_dim=WIDTH,
            position_encoding=place(),
            mask_downsampler=MaskDownSampler(embed_dim=WIDTH, kernel_size=3, stride=2, padding=1),
            fuser=Fuser(
                CXBlock(
                    dim=WIDTH,
                    kernel_size=7,
                    padding=3,
                    layer_scale_init_value=1e-6,
                    use_dwconv=True,
                ),
                num_layers=2,
            ),
        ),
        num_maskmem=MEMORIES,
        image_size=image_size,
        backbone_stride=STRIDE,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=False,
        only_obj_ptrs_in_the_past_for_eval=True,
        max_obj_ptrs_in_encoder=MEMORIES,
        use_mlp_for_obj_ptr_proj=True,
        iou_prediction_use_sigmoid=True,
    ).eval()
