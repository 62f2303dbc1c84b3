"""A runner of the standard library alone that answers at once, and fails as it is told to: what proves the protocol.

Settings: fault, one of those below; at, the item where it happens; times, how often it does.
"""

import os
import struct
import sys
import time
import zlib

sys.path.insert(
    0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "baselines", "published", "workers")
)
import serve

RATE = 4000


class Picture:
    """As much of a PIL image as a runner's answer needs: one colour."""

    def __init__(self, level, cut=False):
        self.level, self.cut = level, cut

    def convert(self, mode):
        assert mode == "RGB"
        return self

    def save(self, path):
        side = 20
        rows = (b"\0" + bytes([self.level] * 3) * side) * side
        content = b"\x89PNG\r\n\x1a\n"
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        for kind, part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            content += struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2] if self.cut else content)


class StandIn(serve.Model):
    def __init__(self, request):
        self.settings = request["settings"]
        if self.settings.get("fault") == "partial load":
            self.missing = ("a.weight", "b.weight")
        if self.settings.get("fault") == "another repository":
            raise serve.Unusable("this is not the repository of the stand-in")
        if self.settings.get("fault") == "slow to load":
            time.sleep(30)

    def answer(self, item, folder):
        fault = self.settings.get("fault") if item["id"] == self.settings.get("at") else None
        if fault and self._often(folder) > self.settings.get("times", 99):
            fault = None
        if fault == "crash":
            print("a segmentation fault, say")
            sys.stdout.flush()
            os.kill(os.getpid(), 9)
        if fault == "raise":
            raise RuntimeError("CUDA out\nof memory")
        if fault == "hang":
            time.sleep(30)
        if self.settings.get("fault") == "slow":
            time.sleep(0.5)
        if fault == "cut line":
            with open(os.path.join(folder, serve.RESPONSES), "ab") as file:
                file.write(b'{"id": "%s", "sta' % item["id"].encode())
            os.kill(os.getpid(), 9)
        if fault in LIES:
            serve._append(folder, {"id": item["id"], "status": "ok", "outputs": LIES[fault](item["want"])})
            os.kill(os.getpid(), 9)
        heard = self._heard(item, folder)
        rate = 8000 if fault == "wrong rate" else RATE
        made = {
            "text": f"seed {item['seed']} heard {heard}",
            "image": Picture(item["seed"] % 256, cut=fault == "unreadable"),
            "audio": ([0.5 if fault != "NaN" else float("nan")] * RATE, rate),
        }
        return {} if fault == "nothing" else {name: made[name] for name in item["want"]}

    def _heard(self, item, folder):
        parts = []
        for name, value in sorted(item["inputs"].items()):
            if name == "audio":
                samples, rate = serve.read_wav(os.path.join(folder, value))
                value = f"{len(samples)} samples of {rate} Hz"
            parts.append(f"{name} {value}")
        return ", ".join(parts) or "nothing"

    def _often(self, folder):
        with open(os.path.join(folder, "faults"), "a+") as file:
            file.write("x")
            return file.tell()


LIES = {
    "outside": lambda want: dict.fromkeys(want, "../../secret.png"),
    "absolute": lambda want: dict.fromkeys(want, "/etc/hostname"),
    "absent file": lambda want: dict.fromkeys(want, "outputs/none.png"),
    "a number": lambda want: dict.fromkeys(want, 7),
    "two lines": lambda want: dict.fromkeys(want, "one\ntwo"),
    "no outputs": lambda want: [],
}

if __name__ == "__main__":
    serve.serve(StandIn)
