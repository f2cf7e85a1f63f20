"""What a student is made of: the `student` part of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from student_worker.recipe.layer_numbers import check_layers, parse_layers


def _layers(value: object) -> object:
    if isinstance(value, str):
        return parse_layers(value)
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


Layers = Annotated[tuple[int, ...], BeforeValidator(_layers)]


class Strict(BaseModel):
    """A part of the schema: unknown keys refused, values never changed after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_empty(cls, values: object) -> object:
        # A variable of the shell that was never set: as a path it would be the folder that one happens to stand in.
        for key, value in values.items() if isinstance(values, dict) else ():
            if value == "":
                raise ValueError(f"{key} must not be empty; give a value, or leave the key out")
        return values


class FixtureSpec(Strict):
    """A student with no model: one learnt row of logits."""

    kind: Literal["fixture"] = Field(description="What kind of student: causal_lm (the default) or fixture.")
    vocabulary_size: int | None = Field(None, ge=1, description="A fixture's width; by default the teacher's.")
    initial_value: float = Field(0.0, description="Every logit of a fixture at the start.")


class CausalLMSpec(Strict):
    """A language model: from weights, from a configuration, or cut out of its teacher."""

    kind: Literal["causal_lm"] = Field(description="What kind of student: causal_lm (the default) or fixture.")
    model: str | None = Field(
        None, description="Folder, hub name or .gguf file with the weights to start from; by default the teacher's."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub name.")
    config: str | None = Field(
        None, description="A config.json (or its folder): start from random weights, drawn from the seed."
    )
    keep_layers: Layers | None = Field(
        None, description="Keep only these layers of the model, for example 0-9,11,13-29, numbered from 0."
    )
    keep_most_important: int | None = Field(
        None,
        ge=1,
        description="Keep so many layers of the model: those that change its hidden states most on the data (Block "
        "Influence, arXiv 2403.03853).",
    )
    attn_implementation: str | None = Field(None, description="As in transformers: eager, sdpa, ...")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Every dropout probability of the model's configuration; by default its own."
    )
    torch_compile: bool = Field(False, description="Compile the model by torch.compile before the first step.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    lora_r: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Train low-rank adapters of this rank (peft) instead of the weights themselves.",
    )
    lora_alpha: float | None = Field(
        None, gt=0, description="The adapters' scale times their rank; by default twice lora_r."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapters.")
    lora_target_modules: tuple[str, ...] = Field(
        (), description="Names of the modules that get adapters; by default all linear layers but the head."
    )
    lora_export: Literal["merged", "adapter"] = Field(
        "merged", description="Export the whole model with its adapters merged, or the adapters alone."
    )

    @field_validator("keep_layers")
    @classmethod
    def _check_layers(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else check_layers(value)

    @model_validator(mode="after")
    def _check_one_origin(self) -> Self:
        cuts = {"keep_layers": self.keep_layers, "keep_most_important": self.keep_most_important}
        named = [name for name, value in cuts.items() if value is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} both say which layers stay; give one")
        if self.config is not None and (self.model is not None or named):
            raise ValueError(f"config draws new weights, so {named[0] if named else 'model'} cannot stand beside it")
        if self.config is not None and self.revision is not None:
            raise ValueError("revision has no effect beside config, which draws new weights; drop it")
        if self.config is None and self.model is None and not named:
            raise ValueError(
                "name the student: model, config, or keep_layers or keep_most_important to cut it out of its teacher"
            )
        return self

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        if self.lora_r is None:
            for name in ("lora_alpha", "lora_dropout", "lora_target_modules", "lora_export"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect without lora_r; give the adapters' rank, or drop it")
        elif self.lora_export == "adapter" and (self.keep_layers or self.keep_most_important):
            raise ValueError(
                "lora_export adapter needs a base that others have, and the one with layers dropped is this run's own; "
                "export it merged"
            )
        elif self.config is not None:
            raise ValueError("lora_r adapts weights that are there, and config draws new ones; name a model")
        return self


def _default_kind(value: object) -> object:
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "causal_lm", **value}
    return value


StudentSpec = Annotated[
    Annotated[FixtureSpec | CausalLMSpec, Field(discriminator="kind")], BeforeValidator(_default_kind)
]
