"""Names in trees with lists of images and labels: RegDB's and LLCM's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from dive_fast.data.layout_names import Naming, Problems, camera_number, same_number
from dive_fast.data.names import abbreviate, canonical_pid
from dive_fast.types import InputError, Modality


class ListNaming(Naming):
    """One folder a person, and a list of "PATH LABEL" a modality, which trainers split at the space.

    `lists` are the list files and `folders` the parents of the persons' folders, by modality.
    """

    lists: dict[Modality, str]
    folders: dict[Modality, str]

    def __init__(self) -> None:
        super().__init__()
        self._folder: dict[str, str] = {}

    def problems(self, people: Sequence[str], cameras: Sequence[tuple[str, Modality]]) -> Problems:
        spaced = [pid for pid in people if " " in pid]
        problem = f"{abbreviate(spaced)}: a name with a space cannot stand in a list; use --number-people"
        return [problem] if spaced else [], []

    def _kept(self, own: str, pid: str, camera: str) -> str:
        path = PurePosixPath(own)
        if " " in own:
            raise InputError(f"{own!r} has a space, where trainers would end the path in a list; rename the file")
        if canonical_pid(path.parent.name, own) == pid:
            self._folder[pid] = path.parent.name  # RegDB's have no leading zeros; new images of the person join them
            return own
        return f"{path.parts[0]}/{pid}/{path.name}"

    def _inside(self, pid: str, modality: Modality, name: str) -> str:
        return f"{self.folders[modality]}/{self._folder.get(pid, pid)}/{name}"


class RegdbNaming(ListNaming):
    """Visible/PID/new_v_00001_PID.png and Thermal/PID/new_t_00001_PID.png, beside RegDB's own male_... and female_..."""

    def __init__(self, trial: int = 1) -> None:
        super().__init__()
        self.lists = {"rgb": f"idx/train_visible_{trial}.txt", "ir": f"idx/train_thermal_{trial}.txt"}
        self.folders = {"rgb": "Visible", "ir": "Thermal"}

    def _next(self, pid: str, camera: str, modality: Modality, suffix: str) -> str:
        letter = "t" if modality == "ir" else "v"
        return self._inside(pid, modality, f"new_{letter}_{self._number(pid, letter):05d}_{pid}{suffix}")


class LlcmNaming(ListNaming):
    """vis/PID/PID_c01_s000001_f0001_vis.png and nir/...; a camera is the number at the end of its name."""

    def __init__(self) -> None:
        super().__init__()
        self.lists = {"rgb": "idx/train_vis.txt", "ir": "idx/train_nir.txt"}
        self.folders = {"rgb": "vis", "ir": "nir"}

    def problems(self, people: Sequence[str], cameras: Sequence[tuple[str, Modality]]) -> Problems:
        wrong, cautions = super().problems(people, cameras)
        wrong += [
            f"camera {camera!r} does not end in a number, as LLCM's file names need; rename it, as --camera {camera}=cam1"
            for camera, _ in cameras
            if camera_number(camera) is None
        ]
        return wrong, cautions + same_number(cameras, apart=True)

    def _next(self, pid: str, camera: str, modality: Modality, suffix: str) -> str:
        kind, place = self.folders[modality], camera_number(camera)
        number = self._number(pid, f"{kind}{place}")
        return self._inside(pid, modality, f"{pid}_c{place:02d}_s{number:06d}_f0001_{kind}{suffix}")
