"""open_clip's text tower in a process of its own. Started by `t2i.text_encoder`, not by hand.

PyTorch's compiler crashes a process that has imported TensorFlow before, which KerasHub does under every backend. So
the tower runs here, where neither is. One JSON line with the settings comes in, then one with each list of prompts; an
answer is a JSON line, and for prompts the float32 embeddings after it.
"""

import difflib
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time


def follow_parent():
    """Leaves signals to the parent process, and ends with it, whatever is being done; its input ends then, too."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    follow_parent()  # before the imports, which take seconds

import open_clip  # noqa: E402
import torch  # noqa: E402

LONGEST = 4000  # characters that can matter: 77 tokens are far fewer


class TextTower:
    """Tokenizer and text tower of an open_clip model, without its visual tower."""

    def __init__(self, model, pretrained, seed, device):
        if model.endswith(".json"):
            model = _added(model)
        elif model not in open_clip.list_models():
            close = difflib.get_close_matches(model, open_clip.list_models(), 4, 0.3)
            raise ValueError(
                f"open_clip knows no model {model!r}. Expected one of open_clip.list_models(), such as "
                f"{', '.join(close or ['ViT-L-14'])}, or the path of a model configuration (.json)."
            )
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        self.model = _created(model, pretrained).eval().requires_grad_(False)
        del self.model.visual
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                raise ValueError(f"{pretrained}: {name} is not finite; get the weights again.")
        self.model.to(self.device)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.context_length = self.tokenizer.context_length
        # Nothing behind the end-of-text token reaches it through a causal mask, so the padding can be left out.
        self.croppable = isinstance(self.model, open_clip.CLIP) and (
            self.model.text_pool_type == "argmax" and self.model.attn_mask is not None
        )

    def facts(self):
        """What the parent process wants to know."""
        dimension = len(self.embed(["a"])[0])
        return {"embedding_dim": dimension, "context_length": self.context_length, "weights_hash": self.weights_hash()}

    def weights_hash(self):
        """A checksum of the text tower's weights."""
        checksum = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            if not name.startswith("logit_"):
                checksum.update(f"{name} {tuple(tensor.shape)}".encode())
                checksum.update(tensor.float().cpu().contiguous().numpy().tobytes())
        return checksum.hexdigest()[:32]

    def embed(self, prompts):
        """Pooled embeddings, float32 NumPy `(N, D)`."""
        tokens = self.tokenizer([" ".join(prompt.split())[:LONGEST] for prompt in prompts])
        if not self.croppable:
            return self._encoded(tokens)
        length, model = int(tokens.argmax(dim=-1).max()) + 1, self.model
        whole = model.positional_embedding, model.attn_mask
        model.positional_embedding = torch.nn.Parameter(whole[0][:length], requires_grad=False)
        model.attn_mask = whole[1][:length, :length]
        try:
            return self._encoded(tokens[:, :length])
        finally:
            model.positional_embedding, model.attn_mask = whole

    def _encoded(self, tokens):
        with torch.inference_mode():
            return self.model.encode_text(tokens.to(self.device)).float().cpu().numpy()

    def truncated(self, prompts):
        """Places of the prompts that have more tokens than the tower takes."""
        count = getattr(self.tokenizer, "encode", None)
        if count is None:  # a tokenizer of another package
            return []
        texts = (" ".join(prompt.split())[:LONGEST] for prompt in prompts)
        return [i for i, text in enumerate(texts) if len(count(text)) + 2 > self.context_length]


def _added(path):
    """Adds a model configuration, a file that was checked, to open_clip's; returns its name."""
    open_clip.add_model_config(path)
    return os.path.splitext(os.path.basename(path))[0]


def _created(model, pretrained):
    if pretrained is None:
        return open_clip.create_model(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if os.path.isfile(pretrained):
        try:
            return open_clip.create_model(model, pretrained=pretrained)
        except Exception as error:
            raise ValueError(f"{pretrained} holds no weights of {model} ({_first_sentence(error)}).") from None
    if not open_clip.is_pretrained_cfg(model, pretrained):
        raise ValueError(
            f"pretrained must be a weights tag of {model} ({', '.join(tags) or 'none'}), a weights file, or None "
            f"for an untrained text tower. Received: {pretrained!r}"
        )
    options = open_clip.get_pretrained_cfg(model, pretrained)
    try:
        return open_clip.create_model(
            model, pretrained=pretrained, force_quick_gelu=bool(options.get("quick_gelu", False))
        )
    except Exception as error:
        raise OSError(
            f"The weights {pretrained!r} of {model} cannot be loaded from the network or its cache "
            f"({_first_sentence(error)}); give a weights file with pretrained=PATH, or pretrained=None for an "
            "untrained text tower."
        ) from None


def _first_sentence(error):
    return (str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__).rstrip(".:")[:300]


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed here must not come between the answers
    logging.disable(logging.ERROR)  # what matters is answered

    def answer(facts, data=b""):
        answers.write(json.dumps(facts).encode() + b"\n" + data)
        answers.flush()

    try:
        tower = TextTower(**json.loads(sys.stdin.readline()))
        answer(tower.facts())
        for line in sys.stdin:
            prompts = json.loads(line)
            embeddings = tower.embed(prompts)
            answer({"shape": embeddings.shape, "truncated": tower.truncated(prompts)}, embeddings.tobytes())
    except Exception as error:
        kind = type(error).__name__ if type(error) in (ValueError, FileNotFoundError) else "OSError"
        text = str(error) if isinstance(error, (ValueError, OSError)) else f"The text encoder failed: {error!r}."
        answer({"error": kind, "message": text})


if __name__ == "__main__":
    main()
