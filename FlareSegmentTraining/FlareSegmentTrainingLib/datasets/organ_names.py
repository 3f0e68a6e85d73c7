"""What people call the organs: names in data sets, in clinical plans and in segmentations, in a few languages.

`organ_of_name` understands a name only as a whole: "Kidney_R" and "Niere re" are the right kidney, "Kidney_R_Cortex",
"Liver-GTV" and "Kidneys" are something else. A kidney or adrenal gland without its side is nobody's. Names of
structures as AAPM TG-263 recommends them (Kidney_R, Kidney_L, Liver, Spleen) are among them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from FlareSegmentLib.organs import FLARE22_ORGANS, organ_by_key


@dataclass(frozen=True)
class Language:
    """Words of one language, lower case and without accents.

    Attributes:
        organs: word for the organ -> organ key; for paired organs the key without its side.
        right, left: words and abbreviations for the sides; those of English are understood in every language.
    """

    organs: Mapping[str, str]
    right: frozenset[str] = field(default_factory=frozenset)
    left: frozenset[str] = field(default_factory=frozenset)


def _language(liver: str, kidney: str, spleen: str, right: str, left: str) -> Language:
    words = (("liver", liver), ("kidney", kidney), ("spleen", spleen))
    organs = {word: key for key, names in words for word in names.split()}
    return Language(organs, frozenset(right.split()), frozenset(left.split()))


LANGUAGES: dict[str, Language] = {
    "English": _language("liver", "kidney", "spleen", "right r rt", "left l lt"),
    "Latin": _language("hepar", "ren", "lien splen", "dexter dextra dex", "sinister sinistra sin"),
    "German": _language("leber", "niere", "milz", "rechts rechte rechter re", "links linke linker li"),
    "French": _language("foie", "rein", "rate", "droit droite dt d", "gauche g"),
    "Spanish": _language("higado", "rinon", "bazo", "derecho der dcho d", "izquierdo izq izdo i"),
    "Italian": _language("fegato", "rene", "milza", "destro destra dx", "sinistro sinistra sx"),
    "Portuguese": _language("figado", "rim", "baco", "direito dir d", "esquerdo esq e"),
    "Dutch": _language("lever", "nier", "milt", "rechter rechts re", "linker links li"),
    "Swedish": _language("lever", "njure", "mjalte", "hoger ho", "vanster va"),
    "Danish and Norwegian": _language("lever", "nyre", "milt", "hojre hoyre", "venstre"),
}

_ALIASES: dict[str, tuple[str, ...]] = {
    "right_kidney": ("rkid", "rk"),
    "left_kidney": ("lkid", "lk"),
    "inferior_vena_cava": ("ivc", "postcava", "vena cava inferior"),
    "aorta": ("arota",),  # as spelled in AMOS's dataset.json
    "right_adrenal_gland": ("adrenal gland right", "right adrenal", "adrenal right", "rag"),
    "left_adrenal_gland": ("adrenal gland left", "left adrenal", "adrenal left", "lag"),
    "gallbladder": ("gall bladder",),
    "esophagus": ("oesophagus",),
}
_NEUTRAL = frozenset({"organ", "oar", "whole", "total", "gesamt"})
_LETTERS = str.maketrans({"ø": "o", "Ø": "O", "ß": "ss", "æ": "ae", "Æ": "Ae"})


def organ_of_name(name: str) -> str | None:
    """The key of the organ that has this name, or None."""
    words = _words(name)
    text = " ".join(words)
    for organ in FLARE22_ORGANS:
        if text in (organ.key.replace("_", " "), *_ALIASES.get(organ.key, ())):
            return organ.key
    keys = {key for language in LANGUAGES.values() if (key := _organ_in(language, words)) is not None}
    return keys.pop() if len(keys) == 1 else None


def lacks_side(name: str) -> bool:
    """Whether this is the name of a kidney or an adrenal gland, or of both, without its side."""
    one = name.strip().rstrip("sS")
    return organ_of_name(name) is None and organ_of_name(f"right {one}") is not None


def _words(name: str) -> list[str]:
    """Words of a name: without accents, lower case, taken apart at capitals (RKidney, KidneyR) and signs."""
    plain = unicodedata.normalize("NFKD", name.translate(_LETTERS))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", plain)
    return re.sub(r"[^a-z0-9]+", " ", apart.lower()).split()


def _organ_in(language: Language, words: list[str]) -> str | None:
    right, left = language.right | LANGUAGES["English"].right, language.left | LANGUAGES["English"].left
    organs, sides = [], []
    for word in (part for whole in words for part in _parts(whole, language, right | left)):
        if word in language.organs:
            organs.append(language.organs[word])
        elif word in right or word in left:
            sides.append("right" if word in right else "left")
        elif word not in _NEUTRAL:
            return None
    if len(organs) != 1 or len(set(sides)) > 1:
        return None
    if organs[0] == "kidney":
        return organ_by_key(f"{sides[0]}_kidney").key if sides else None
    return None if sides else organs[0]


def _parts(word: str, language: Language, sides: frozenset[str]) -> list[str]:
    """A word, taken apart where a paired organ and its side are written as one (rkidney, niererechts)."""
    for organ, key in language.organs.items():
        if key == "kidney" and word != organ:
            if word.startswith(organ) and word[len(organ) :] in sides:
                return [organ, word[len(organ) :]]
            if word.endswith(organ) and word[: -len(organ)] in sides:
                return [word[: -len(organ)], organ]
    return [word]
