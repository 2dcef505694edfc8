"""Data sets of TensorFlow Datasets as sources, see `fcdm_keras.data.sources`.

Which of a data set's features are image and label: those that are asked for; else those that its `supervised_keys`
declare; else the only ones of their kind; else those called `image` and `label`.
"""

import numpy as np

from fcdm_keras.data.transforms import Example

VALIDATION = ("validation", "val", "valid", "dev")  # names of one split


class TFDSSource:
    """A prepared, class-labelled data set of TensorFlow Datasets, stored as TFRecord or as ArrayRecord.

    Args:
        name: of the data set, such as `imagenet2012` or `imagenette/320px-v2`.
        split: one of its splits, not a slice of one. Names of the validation split stand for each other.
        data_dir: TensorFlow Datasets' folder.
        label, image: names of the features, where the data set has several and does not declare one.

    Raises:
        FileNotFoundError: the data set is not there, or not prepared.
        ValueError: there is no such split, or not one image and one class to each example.
    """

    def __init__(self, name, split="train", data_dir=None, label=None, image=None):
        asked = ", ".join(f"{what} {key}" for what, key in (("image", image), ("label", label)) if key)
        self.name = f"{name} ({asked})" if asked else name
        self._builder = prepared_builder(name, data_dir)
        features = Features(self._builder.info, name)
        self._image, self._label = features.image(image), features.label(label)
        self.split = self._own_split(split)
        names = getattr(self._builder.info.features[self._label], "names", None)
        self.class_names = tuple(names or map(str, range(features.num_classes(self._label))))

    def __len__(self):
        return self._builder.info.splits[self.split].num_examples

    def _own_split(self, split):
        splits = self._builder.info.splits
        same = [name for name in splits if name in VALIDATION and split in VALIDATION]
        if split not in splits and len(same) != 1:
            raise ValueError(f"{self.name} has the splits {', '.join(splits)}. Received: {split!r}")
        return split if split in splits else same[0]

    def examples(self, start, stop):
        """The data set's own examples of a range, as dicts, with the images still encoded."""
        stop = min(stop, len(self))
        if start >= stop:
            return iter(())
        array_record = self._builder.info.file_format.value == "array_record"
        return (self._array_records if array_record else self._tf_records)(start, stop)

    def read(self, start, stop):
        for place, example in enumerate(self.examples(start, stop), start):
            yield Example(_bytes(example[self._image]), int(example[self._label]), _key(example, self.split, place))

    def _array_records(self, start, stop):
        source = self._builder.as_data_source(self.split, decoders=self._decoders())
        return (source[i] for i in range(start, stop))

    def _tf_records(self, start, stop):
        tfds = _tensorflow_datasets()
        return self._builder.as_dataset(
            split=f"{self.split}[{start}:{stop}]",
            shuffle_files=False,
            decoders=self._decoders(),
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        ).as_numpy_iterator()

    def _decoders(self):
        return {self._image: _tensorflow_datasets().decode.SkipDecoding()}


class Features:
    """Which features of a data set are image and label."""

    def __init__(self, info, name):
        self._kinds = _tensorflow_datasets().features
        self._all = dict(sorted(info.features.items()))
        self._name = name
        self._inputs, self._outputs, *_ = (
            list(dict.fromkeys(_keys(part))) for part in info.supervised_keys or ((), ())
        )

    def image(self, asked=None):
        """The name of the image. Raises ValueError, in one sentence, if there is not one."""
        images = [key for key, feature in self._all.items() if self._is_image(feature)]
        if key := self._chosen("image", asked, images, self._inputs, self._outputs) or self._single("image", images):
            return key
        raise ValueError(
            f"{self._name} has no Image feature, so it is no set of single images. Received: {self._shown(*self._all)}"
        )

    def label(self, asked=None):
        """The name of the label. Raises ValueError, in one sentence, if there is not one."""
        labels = [key for key in self._all if self.num_classes(key)]
        named = [key for key in labels if isinstance(self._all[key], self._kinds.ClassLabel)]
        if key := self._chosen("label", asked, labels, self._outputs, self._inputs) or self._single("label", named):
            return key
        raise ValueError(
            f"{self._name} has no ClassLabel feature, so it is no class-labelled set of images. Received: "
            f"{self._shown(*self._all)}"
        )

    def num_classes(self, key):
        """The number of classes of a label; 0 if it is not known, or if the feature is no label."""
        feature = self._all[key]
        if isinstance(feature, self._kinds.ClassLabel):
            return feature.num_classes or 0
        if not self._is_number(feature):
            return 0
        values = feature.get_tensor_info()
        if feature.np_dtype == np.bool_:
            return 2
        return int(values.maximum) + 1 if values.minimum == 0 and values.maximum is not None else 0

    def _chosen(self, what, asked, fitting, declared, others):
        """The name that was asked for, or else the one that is declared, or `None`."""
        if asked is not None and asked not in fitting:
            raise ValueError(f"{self._name} has no feature {asked!r} to be its {what}{self._choice(what, fitting)}")
        if asked is not None:
            return asked
        found = [key for key in declared if key in fitting]
        wrong = [key for key in declared if key in self._all and self._is_meant(what, self._all[key])]
        if wrong and not found:
            raise ValueError(
                f"{self._name} declares {self._shown(wrong[0])} as its {what}, and each example needs {_NEEDED[what]}"
                f"{self._choice(what, fitting)}"
            )
        return self._single(what, found or [key for key in others if key in fitting])

    def _single(self, what, keys):
        """The only one of some names, or the one that is called `what`; `None` if there are none."""
        if len(keys) > 1 and what not in keys:
            raise ValueError(
                f"{self._name} has several {what} features and does not declare one of them{self._choice(what, keys)}"
            )
        return what if what in keys else next(iter(keys), None)

    def _choice(self, what, keys):
        if not keys:
            return f". Received: {self._shown(*self._all)}"
        return f": choose one of {', '.join(keys)} with --{what}-feature of `python -m fcdm_keras.encode`."

    def _is_image(self, feature):
        other = isinstance(feature, self._kinds.LabeledImage)  # a mask
        return isinstance(feature, self._kinds.Image) and not other and feature.np_dtype != np.float32  # a depth map

    def _is_number(self, feature):
        plain = type(feature) in (self._kinds.Tensor, self._kinds.Scalar)
        return plain and not feature.shape and np.dtype(feature.np_dtype).kind in "iub"

    def _is_meant(self, what, feature):
        """Whether a declared feature was meant for it, even if it does not fit."""
        single = getattr(feature, "feature", feature)  # of a sequence
        kind = self._kinds.Image if what == "image" else self._kinds.ClassLabel
        return isinstance(single, kind) or (what == "label" and self._is_number(single))

    def _shown(self, *keys):
        return ", ".join(f"{key} ({_kind(self._all[key])})" for key in keys)


_NEEDED = {
    "image": "one Image of integers",
    "label": "one ClassLabel, or one integer from 0 to a maximum that is declared",
}


def _kind(feature):
    kind = type(feature).__name__
    if hasattr(feature, "feature"):
        return f"{kind} of {_kind(feature.feature)}"
    return f"{kind} of {np.dtype(feature.np_dtype).name}" if kind in ("Tensor", "Scalar", "Image") else kind


def _keys(nest):
    """The keys in a structure of tuples, dicts and keys."""
    if isinstance(nest, str):
        yield nest
    else:
        for part in nest.values() if isinstance(nest, dict) else nest:
            yield from _keys(part)


def prepared_builder(name, data_dir):
    """The builder of a data set of TensorFlow Datasets. Raises FileNotFoundError, and says what to do, without one."""
    tfds = _tensorflow_datasets()

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError):  # no such name, or not the form of one
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a data set of TensorFlow Datasets. Expected a folder of class folders, "
            "photos, or a name such as imagenet2012."
        ) from None
    if not builder.info.splits:
        raise FileNotFoundError(_how_to_prepare(name, builder.data_dir, data_dir))
    return builder


def _tensorflow_datasets():
    """TensorFlow Datasets, imported where it is used: it is an extra, and slow, and data workers need no Keras."""
    from fcdm_keras.backend.hub import hide_tensorflow_gpus

    hide_tensorflow_gpus()
    import tensorflow_datasets

    return tensorflow_datasets


def _how_to_prepare(name, expected, data_dir):
    where = data_dir or "~/tensorflow_datasets"
    if name.startswith("imagenet2012"):
        run = (
            "Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org, put them into "
            f"{where}/downloads/manual and run"
        )
    else:
        run = "With a network, run"
    return (
        f"{name} is not prepared: there is nothing at {expected}. {run} `tfds build {name} --data_dir {where}`; "
        "--data-dir names another place, and a folder of class folders works too."
    )


def _bytes(image):
    return bytes(image) if isinstance(image, bytes) else np.asarray(image).item()


def _key(example, split, place):
    name = example.get("file_name")
    name = name.item() if isinstance(name, np.ndarray) and name.ndim == 0 else name
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else f"{split}/{place}"
