"""Small nets of all kinds, by name: each returns a net and what makes a batch, as arguments and keywords of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Batch: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
Make: TypeAlias = Callable[[], tuple[nn.Module, Callable[[int], Batch]]]

IMAGES = (  # of timm: name, pixels
    *(("resnet18", 64), ("resnext50_32x4d", 64), ("wide_resnet50_2", 64), ("seresnet18", 64), ("densenet121", 64)),
    *(("efficientnet_b0", 64), ("mobilenetv2_050", 64), ("mobilenetv3_small_050", 64), ("mnasnet_small", 64)),
    *(("regnetx_002", 64), ("regnety_002", 64), ("ghostnet_050", 64), ("dla34", 64), ("hardcorenas_a", 64)),
    *(
        ("convnext_atto", 64),
        ("nfnet_f0", 64),
        ("nf_resnet26", 64),
        ("vgg11", 64),
        ("repvgg_a0", 64),
        ("resnetv2_50", 64),
    ),
    *(("vit_tiny_patch16_224", 224), ("deit_tiny_patch16_224", 224), ("beit_base_patch16_224", 224)),
    *(
        ("resnetv2_50", 64),
        ("mixer_s32_224", 224),
        ("resmlp_12_224", 224),
        ("cait_xxs24_224", 224),
        ("poolformer_s12", 64),
    ),
    *(("swin_tiny_patch4_window7_224", 224), ("pvt_v2_b0", 64), ("edgenext_xx_small", 64), ("mobilevit_xxs", 64)),
    *(("levit_128s", 224), ("xcit_nano_12_p16_224", 224), ("fastvit_t8", 64), ("resnetv2_50", 64)),
)
TORCHVISION = (
    *(
        "alexnet",
        "googlenet",
        "inception_v3",
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        "mobilenet_v2",
        "efficientnet_v2_s",
    ),
    *("efficientnet_v2_s", "vit_b_32", "swin_t", "maxvit_t"),
)
LANGUAGE: dict[str, tuple[str, dict[str, Any]]] = {  # of transformers: class of the configuration, its values
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "phi": ("PhiConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", {}),
    "mamba": ("MambaConfig", {"state_size": 8}),
    "bert": ("BertConfig", {}),
    "roberta": ("RobertaConfig", {"pad_token_id": 0}),
    "distilbert": ("DistilBertConfig", {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}),
    "albert": ("AlbertConfig", {"embedding_size": 32}),
    "deberta_v2": ("DebertaV2Config", {}),
    "t5": ("T5Config", {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}),
    "bart": (
        "BartConfig",
        {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    ),
}
SMALL = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


def timm_net(name: str, pixels: int) -> Make:
    def make() -> tuple[nn.Module, Callable[[int], Batch]]:
        import timm

        return timm.create_model(name, num_classes=10), images(pixels)

    return make


def torchvision_net(name: str) -> Make:
    def make() -> tuple[nn.Module, Callable[[int], Batch]]:
        import torchvision

        pixels = {"vit_b_32": 224, "swin_t": 64, "maxvit_t": 224, "inception_v3": 160}.get(name, 64)
        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, **options), images(pixels)

    return make


def language_net(kind: str, values: dict[str, Any], adapted: bool = False) -> Make:
    def make() -> tuple[nn.Module, Callable[[int], Batch]]:
        import transformers

        config_class = getattr(transformers, kind)
        known = set(config_class().to_dict()) | set(config_class.attribute_map)
        config = config_class(**{key: value for key, value in {**SMALL, **values}.items() if key in known})
        net = transformers.AutoModel.from_config(config)
        if adapted:
            import peft

            net = peft.get_peft_model(net, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
        keywords = {"decoder_input_ids"} if config.is_encoder_decoder else set()

        def batch(step: int) -> Batch:
            tokens = torch.randint(3, 100, (2, 16), generator=torch.Generator().manual_seed(step))
            return (), {"input_ids": tokens, **dict.fromkeys(keywords, tokens)}

        return net, batch

    return make


def images(pixels: int) -> Callable[[int], Batch]:
    return lambda step: ((torch.randn(4, 3, pixels, pixels, generator=torch.Generator().manual_seed(step)),), {})


def unet() -> tuple[nn.Module, Callable[[int], Batch]]:
    import diffusers

    net = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )
    (noise,) = (images(16),)
    return net, lambda step: ((*noise(step)[0], 3), {})


def autoencoder() -> tuple[nn.Module, Callable[[int], Batch]]:
    import diffusers

    return diffusers.AutoencoderKL(norm_num_groups=8, block_out_channels=(32,)), images(16)


def graph_net(name: str) -> Make:
    def make() -> tuple[nn.Module, Callable[[int], Batch]]:
        from torch_geometric.nn import models

        def batch(step: int) -> Batch:
            generator = torch.Generator().manual_seed(step)
            nodes = torch.randn(20, 8, generator=generator)
            return (nodes, torch.randint(0, 20, (2, 60), generator=generator)), {}

        return getattr(models, name)(8, 16, 2, 4), batch

    return make


class Recurrent(nn.Module):
    """Time first, as recurrent layers are by default."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTM(8, 16, 2), nn.GRU(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(x)[0])[0])


class Ensemble(nn.Module):
    """One layer that is called three times, a tied weight, a frozen layer and a branch that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.tied, self.other = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.tied.weight
        self.frozen, self.unused = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.relu(self.shared(x))
        return self.other(torch.tanh(self.tied(self.frozen(x))))


def vectors(*shape: int) -> Callable[[int], Batch]:
    return lambda step: ((torch.randn(*shape, generator=torch.Generator().manual_seed(step)),), {})


def transformer() -> tuple[nn.Module, Callable[[int], Batch]]:
    both = vectors(5, 2, 16)
    return nn.Transformer(16, 2, 1, 1, 32), lambda step: (both(step)[0] * 2, {})


NETS: dict[str, Make] = {
    "MLP": lambda: (nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4)), vectors(8, 8)),
    "shared, tied, frozen": lambda: (Ensemble(), vectors(8, 8)),
    "LSTM and GRU": lambda: (Recurrent(), vectors(6, 4, 8)),
    "nn.Transformer": transformer,
    **{f"timm {name}": timm_net(name, pixels) for name, pixels in IMAGES},
    **{f"torchvision {name}": torchvision_net(name) for name in TORCHVISION},
    **{f"transformers {name}": language_net(kind, values) for name, (kind, values) in LANGUAGE.items()},
    "peft LoRA of llama": language_net("LlamaConfig", {}, adapted=True),
    "diffusers UNet2DModel": unet,
    "diffusers AutoencoderKL": autoencoder,
    **{f"torch_geometric {name}": graph_net(name) for name in ("GCN", "GAT", "GIN", "GraphSAGE")},
}
