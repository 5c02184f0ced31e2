"""What the cookbook's commands name: small archives and untrained weights, each made when it is asked for."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
STEEL = '''
from torch import nn


class SteelNet(nn.Module):
    """Is there a defect? One probability per image, (B, 1, 1, 1)."""

    def __init__(self, width, blocks=2):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, stride=4, padding=3)
        self.resnet_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(blocks)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 1, 1), nn.Sigmoid())

    def forward(self, x):
        x = self.stem(x)
        for block in self.resnet_blocks:
            x = x + block(x)
        return self.head(x)
'''


def picture(path: Path, size: tuple[int, int], seed: int, grey: bool = False) -> None:
    """A smooth picture that is like no other."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 9) if grey else (9, 9, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)


def xrays(folder: Path) -> None:
    for i in range(4):
        picture(folder / "xrays" / ("normal", "pneumonia")[i % 2] / f"{i:08d}.png", (512, 512), i, grey=True)


def photos(folder: Path) -> None:
    for i, size in enumerate([(500, 375), (375, 500), (640, 240), (320, 320)]):
        picture(folder / "photos" / f"{i:04d}.jpg", size, 10 + i)


def samples() -> dict[str, dict[str, bytes]]:
    """The 60 images of the first shard of the demonstration archive, with what lies beside them."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(ROOT / "demo" / "archive" / "hans64-00000.tar") as tar:
        for info in tar:
            key, _, ending = info.name.rpartition(".")
            data = tar.extractfile(info)
            assert data is not None
            found.setdefault(key, {})[ending] = data.read()
    return found


def said_of(sample: dict[str, bytes]) -> tuple[str, list[float]]:
    facts = json.loads(sample["json"])
    return facts["label"], [round(edge * 64) for edge in facts["box"]]


def shapes(folder: Path) -> None:
    (folder / "shapes").mkdir()
    lines = ["path,label,xmin,ymin,xmax,ymax"]
    for key, sample in samples().items():
        (folder / "shapes" / f"{key}.jpg").write_bytes(sample["jpg"])
        label, box = said_of(sample)
        lines.append(f"shapes/{key}.jpg,{label},{','.join(map(str, box))}")
    lines.append("shapes/lost.jpg,disk,,,,")
    (folder / "shapes.csv").write_text("\n".join(lines))


def hub(folder: Path) -> None:
    (folder / "hub").mkdir()
    lines = []
    for key, sample in samples().items():
        (folder / "hub" / f"{key}.jpg").write_bytes(sample["jpg"])
        label, (x0, y0, x1, y1) = said_of(sample)
        box = {"bbox": [[x0, y0, x1 - x0, y1 - y0]]}
        lines.append(json.dumps({"file_name": f"{key}.jpg", "label": label, "objects": box}))
    (folder / "hub" / "metadata.jsonl").write_text("\n".join(lines))


def hub_parquet(folder: Path) -> None:
    (folder / "hub-parquet").mkdir()
    rows = [
        {"image": {"bytes": s["jpg"], "path": f"{key}.jpg"}, "label": int(s["cls"])}
        for key, s in samples().items()
    ]
    names = ["disk", "square", "triangle", "cross", "ring", "star"]
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "hub-parquet" / "train-00000-of-00001.parquet")


def web(folder: Path) -> None:
    (folder / "web").mkdir()
    with tarfile.open(folder / "web" / "00000.tar", "w") as tar:
        for key, sample in samples().items():
            caption = said_of(sample)[0]
            facts = json.dumps({"caption": caption, "key": key, "status": "success"}).encode()
            for ending, data in (("jpg", sample["jpg"]), ("json", facts), ("txt", caption.encode())):
                entry = tarfile.TarInfo(f"{key}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    (folder / "web" / "00000_stats.json").write_text("{}")


def scans(folder: Path) -> None:
    import pydicom

    (folder / "scans").mkdir()
    for i in range(8):
        picture(folder / "grey.png", (64, 64), 30 + i, grey=True)
        deep = np.asarray(Image.open(folder / "grey.png")).astype(np.uint16) * 16
        if i >= 6:
            Image.fromarray(deep).save(folder / "scans" / f"{i}.png")
            continue
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.{i}"
        data.Rows, data.Columns = deep.shape
        data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 16, 12, 11
        data.PhotometricInterpretation, data.PixelRepresentation = f"MONOCHROME{1 if i >= 4 else 2}", 0
        if i < 4:
            data.WindowCenter, data.WindowWidth = 2016.5, 4081
        data.PixelData = deep.tobytes()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        name = f"IM{i:04d}" + (".dcm" if i >= 4 else "")
        data.save_as(folder / "scans" / name, enforce_file_format=True)


def _weights(make: Callable[[], object], name: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        import torch

        torch.manual_seed(0)
        torch.save(make(), folder / name)

    return save


def _botnet() -> object:
    import timm

    return timm.create_model("botnet26t_256", pretrained=False, num_classes=2).state_dict()


def _whole() -> object:
    import torchvision

    return torchvision.models.resnet18(weights=None, num_classes=2)


def _chest() -> object:
    import torchvision

    state = torchvision.models.densenet121(weights=None, num_classes=14).state_dict()
    return {"epoch": 7, "state_dict": {f"module.{k}": v for k, v in state.items()}}


def _pvt() -> object:
    import timm

    return {"model": timm.create_model("pvt_v2_b0", pretrained=False, num_classes=2).state_dict()}


def _vgg() -> object:
    import torchvision

    return torchvision.models.vgg16(weights=None, init_weights=False).state_dict()


def squeezenet(folder: Path) -> None:
    import torchvision
    from safetensors.torch import save_file

    model = torchvision.models.squeezenet1_0(weights=None)
    save_file(model.state_dict(), folder / "squeezenet.safetensors")


def steel(folder: Path) -> None:
    import torch

    (folder / "steel.py").write_text(STEEL)
    space: dict[str, Callable[..., torch.nn.Module]] = {}
    exec(STEEL, space)
    torch.manual_seed(0)
    torch.save(space["SteelNet"](width=8, blocks=3).state_dict(), folder / "steel.pth")


def names(folder: Path) -> None:
    """The 1000 names of ImageNet, from timm's own table."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    found = [info.index_to_description(i).partition(",")[0] for i in range(1000)]
    (folder / "imagenet_classes.json").write_text(json.dumps(found))


MAKERS: dict[str, Callable[[Path], None]] = {
    "xrays": xrays,
    "photos": photos,
    "photos/0000.jpg": photos,
    "shapes": shapes,
    "shapes.csv": shapes,
    "hub": hub,
    "hub-parquet": hub_parquet,
    "web": web,
    "scans": scans,
    "steel.pth": steel,
    "imagenet_classes.json": names,
    "squeezenet.safetensors": squeezenet,
    "answers.txt": lambda folder: _text(folder / "answers.txt", ["fine", "defect"]),
    "findings.txt": lambda folder: _text(folder / "findings.txt", [f"finding {i}" for i in range(14)]),
    "botnet.pth": _weights(_botnet, "botnet.pth"),
    "resnet18.pth": _weights(_whole, "resnet18.pth"),
    "chest.pth.tar": _weights(_chest, "chest.pth.tar"),
    "pvt.pth": _weights(_pvt, "pvt.pth"),
    "vgg16.pth": _weights(_vgg, "vgg16.pth"),
}


def _text(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines))


def vit_things(folder: Path) -> None:
    from tests.models.hugging_face_zoo import FOLDERS

    FOLDERS[0].save(folder / "vit-things")


def clip_things(folder: Path) -> None:
    from tests.models.test_heads import save_pair

    save_pair(folder / "clip-things", "clip")
    lines = ("a photo of {}", "a drawing of {}", "thing1", "thing2", "something else: thing3 of a photo")
    (folder / "classes.txt").write_text("\n".join(lines))


def detr_things(folder: Path) -> None:
    from tests.models.test_detectors import hugging_face_detector

    hugging_face_detector("detr", folder / "detr-things")


def segformer_things(folder: Path) -> None:
    from tests.models.test_segmenters import hugging_face_segmenter

    hugging_face_segmenter("segformer", folder / "segformer-things")


def open_clip_things(folder: Path) -> None:
    from tests.models.test_open_clip import save_folder

    (folder / "open-clip-things").mkdir()
    save_folder(folder / "open-clip-things")
    (folder / "things.txt").write_text("a photo of a {}\na drawing of a {}\ncat\ndog\n")


def yolo_things(folder: Path) -> None:
    from tests.models.test_yolo import saved

    saved("yolov8n", folder).rename(folder / "yolo-things.pt")


def unet_things(folder: Path) -> None:
    import segmentation_models_pytorch as smp
    import torch

    torch.manual_seed(0)
    smp.Unet("resnet18", encoder_weights=None, classes=3).save_pretrained(folder / "unet-things")


MAKERS |= {"vit-things": vit_things, "clip-things": clip_things, "open-clip-things": open_clip_things}
MAKERS |= {"yolo-things.pt": yolo_things, "unet-things": unet_things}
MAKERS |= {"detr-things": detr_things, "segformer-things": segformer_things}


def lay_out(folder: Path, words: Iterable[str]) -> None:
    """Make in `folder` whatever the words of a command name, and the bundled models beside it."""
    for word in words:
        if word in MAKERS and not (folder / word).exists():
            MAKERS[word](folder)
    if not (folder / "demo").exists():
        shutil.copytree(ROOT / "demo" / "models", folder / "demo" / "models")
