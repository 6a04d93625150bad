"""The files of the named data sets: names, folders, checksums and public addresses."""

from vlae.data.sources import File

_MNIST = {
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}
_FASHION_MNIST = {
    "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}


def _idx_files(folder: str, checksums: dict[str, str], *mirrors: str) -> list[File]:
    return [
        File(name, (folder,), checksum, tuple(mirror + name for mirror in mirrors))
        for name, checksum in checksums.items()
    ]


MNIST = _idx_files(
    "mnist",
    _MNIST,
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_MNIST = _idx_files(
    "fashion_mnist",
    _FASHION_MNIST,
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)

_AMAT_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
AMAT_FILES = [
    File(
        f"binarized_mnist_{part}.amat", ("mnist_static",), f"sha256:{sha}", (f"{_AMAT_URL}binarized_mnist_{part}.amat",)
    )
    for part, sha in {
        "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
        "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
        "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    }.items()
]
PACKED_FILE = File("binarized_mnist_packed.npz", ("mnist_static",))
PACKED_ARRAYS = {  # of the arrays in it, eight pixels to a byte: the container may differ
    "train": "309a57a5f57edf7dfa1a0d2118daedf9",
    "valid": "98627b12c08410820c516e41a0e07017",
    "test": "50aa7f0ccbdaba86f6a8aeabd1fecfed",
}

_OMNIGLOT_URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
OMNIGLOT_ZIPS = [
    File(f"images_{part}.zip", ("omniglot",), f"md5:{md5}", (f"{_OMNIGLOT_URL}images_{part}.zip",), repacked=True)
    for part, md5 in {
        "background": "68d2efa1b9178cc56df9314c21c6e718",
        "evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
    }.items()
]
OMNIGLOT_BOX28 = File("omniglot_28x28_box_resized.npz", ("omniglot",))
OMNIGLOT_CHARDATA = File(
    "chardata.mat",
    ("omniglot",),
    "md5:21ecaf34373511aa7691cf2e0802aa3d",
    ("https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",),
)

CALTECH = File(
    "caltech101_silhouettes_28_split1.mat",
    ("caltech101_silhouettes",),
    "md5:4483e9c14b188fd09937f9ea6f9ea777",
    ("https://people.cs.umass.edu/~marlin/data/caltech101_silhouettes_28_split1.mat",),
)

CIFAR10 = [
    File(f"{name}.bin", ("cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"), f"md5:{md5}")
    for name, md5 in {
        "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
    }.items()
]
CIFAR10_ARCHIVE = File(
    "cifar-10-binary.tar.gz",
    ("cifar10",),
    "md5:c32a1d4ab5d03f1284b67883e8d87530",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)

_DSPRITES_FULL = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
DSPRITES_FULL = File(
    _DSPRITES_FULL,
    ("dsprites", "dsprites-dataset"),
    "md5:7da33b31b13a06f4b04a70402ce90c2e",
    (f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{_DSPRITES_FULL}",),
)
DSPRITES_FACTORIAL = File("dsprites_factorial_sh3sc6or10x16y16_64x64.npz", ("dsprites",))
DSPRITES_RANDOM = File("dsprites_random20000_64x64.npz", ("dsprites",))
