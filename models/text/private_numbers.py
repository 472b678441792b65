"""Numbers that belong to somebody: phones, IBANs, payment cards and IP addresses.

A number is taken for a phone or a card if its form or a word before it says so, and not if the nearest word says
order, invoice, tracking, serial number or the like. Libraries decide what is valid: phonenumbers (the numbering plans
of all countries), python-stdnum (checksums), ipaddress.
"""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import phonenumbers
from stdnum import iban, isbn, luhn

from models.text.private_detail import Detail

REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "PT", "AT", "CH", "BE", "CN", "AU", "IN", "BR", "MX")
"""Whose phone numbers are found without a country code."""

SEVEN_DIGITS = re.compile(r"\d(?:\W{0,3}\d){6}")
"""Every phone, IBAN and card has seven digits with no letter between them."""

# Latin letters and digits: a number may follow a Chinese character at once, but no letter of a word.
_LETTERS = "A-Za-z0-9_\u00c0-\u024f"

# --- What the words before a number say
_ABOUT_OTHERS = re.compile(
    r"\b(?:order|orders|confirmation|case|ticket|invoice|reference|ref|booking|tracking|track|ups|usps|fedex|dhl|"
    r"account|acct|serial|imei|sku|item|po|ean|upc|gtin|isbn|issn|barcode|pmid|doi|id|ids|uid|uuid|ssn|ein|zip|vin|"
    r"timestamp|unix|user|session|model|part|policy|member|customer|password|licen[cs]e|passport|usd|eur|gbp|"
    r"\w*(?:bestell|rechnungs?|kunden|artikel|auftrags?|vertrags?|konto|sendungs?)(?:nummer|nr)?|aktenzeichen|rechnung|"
    r"commande|facture|dossier|pedido|orden|factura|ordine|fattura|fatura|bestelling|factuur)\b"
    r"|订单|单号|编号|身份证|学号|账号|工号",
    re.IGNORECASE,
)
_ABOUT_PHONES = re.compile(
    r"\b(?:phones?|telephone|tel|cell|cellphone|mobile|mobil\w*|handy\w*|fax|call(?:ed|ing)?|dial|ring|text|texted|sms|"
    r"whats\s?app|reach(?:ed)?|contact|number|numbers|hotline|telefon\w*|festnetz|ruf(?:en|e)?|erreich\w+|durchwahl|"
    r"nummer|t[eé]l[eé]phone|t[eé]l|portable|appel\w*|num[eé]ro|tel[eé]fono|m[oó]vil|ll[aá]m\w+|n[uú]mero|cellulare|"
    r"chiam\w+|telefone|telem[oó]vel|celular|ligue\w*|bel|bellen|gsm)\b"
    r"|电话|手机|热线|致电|号码|拨打|微信|联系|打$",
    re.IGNORECASE,
)
_ABOUT_CARDS = re.compile(
    r"(?:\b(?:card|cards|visa|master\s?card|amex|american express|discover|diners|maestro|jcb|credit|debit|\w*karte|"
    r"carte|tarjeta|carta|cart[aã]o|kaart)\b|银联|卡号|信用卡)",
    re.IGNORECASE,
)
# Words that only repeat the noun before them: "order number is".
_NEUTRAL = re.compile(r"numbers?|nummer|num[eé]ro|n[uú]mero|号码", re.IGNORECASE)
# Which number it is, if no noun says so: "my number", "the number is".
_NUMBER_OF = re.compile(
    r"\b(?:my|your|their|his|her|our|its|['’]s|meine?|mon|mi|mio|meu|mijn|ons|local|direct|work|home|office)\s+(?:\w+\s+)?n[uú]m+[eé]?(?:ro|r|ber)s?\b"
    r"|\bnumbers?(?:\s+(?:\w+\s+)?(?:is|on|are)\b|:)|号码|number for",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[!?;\n]|,\s|[a-z]\.$|(?<!\bno)(?<!\bNo)(?<!\bnr)(?<!\bNr)\.\s")
_WINDOW = 48


def _last(pattern: re.Pattern[str], text: str) -> int:
    return max((match.end() for match in pattern.finditer(text)), default=-1)


def _says(text: str, start: int, end: int, wanted: re.Pattern[str], before: str) -> bool | None:
    """Whether the words before a number say that it is what is wanted (True), something else (False), or neither.

    Where they say nothing, what the message before asks for counts, against bare digits only.
    """
    verdict = _verdict(text[max(0, start - _WINDOW) : start], wanted)
    if verdict is None and before:
        asked = _verdict(before.rstrip("?!. \n")[-2 * _WINDOW :], wanted)
        verdict = asked if asked or text[start:end].isdecimal() else None
    return verdict


def _verdict(window: str, wanted: re.Pattern[str]) -> bool | None:
    sentence = window[max((match.end() for match in _SENTENCE_END.finditer(window.rstrip())), default=0) :]
    other = _last(_ABOUT_OTHERS, sentence)
    if other >= 0:
        other += len(window) - len(sentence)
    strong = max((m.end() for m in wanted.finditer(window) if not _NEUTRAL.fullmatch(m.group())), default=-1)
    if other >= 0 or strong >= 0:
        return strong > other
    return True if wanted.search(window) and _NUMBER_OF.search(window) else None


# --- Phones
_GAP = r"[ \u00a0\u2009\u202f().\-/\u2010-\u2013]{0,3}"
_PHONE = re.compile(
    rf"(?<![{_LETTERS}$€£¥#@%/+~^*-])(?<!\d[.,:])(?<![$€£¥] )[+(]{{0,2}}\d(?:{_GAP}\d){{6,18}}"
    r"(?:,?\s?(?:ext\.?|extension|x|poste|Durchwahl)\s?\d{1,5})?"
    rf"(?![{_LETTERS}%°])(?![.,:/*+=-]\d|\s?[*=°€£]|\$)",
)
# "text me 2 415-555-0132", "Suite 12. 415-555-0132"
_AFTER_A_DIGIT = re.compile(r"(\d{1,4}[ .]{1,2})(?<!\b1[ .])\(?\d{3}\)?[ -.]\d{3}[-.]\d{4}")
_EXTENSION = re.compile(r",?\s?[A-Za-z].*")
# Their national prefix is 0, and few write it.
_WITHOUT_PREFIX = frozenset({"CN", "BR", "IN"})
_HAN = re.compile("[\u4e00-\u9fff]")
_AREA = re.compile(r"\(\d{2,5}\)")
_DIGITS = frozenset("23456789")
_CHINESE_MOBILE = re.compile(r"1[3-9]\d{9}")


class Phones:
    """Finds phone numbers: international ones, and those of some regions."""

    def __init__(self, regions: Sequence[str]) -> None:
        self._regions = tuple(regions)

    @staticmethod
    def all_regions() -> Sequence[str]:
        """Every region that has a numbering plan."""
        return sorted(phonenumbers.SUPPORTED_REGIONS)

    def find(self, text: str, before: str = "") -> Iterator[Detail]:
        """The phone numbers of a text."""
        is_chinese = not text.isascii() and bool(_HAN.search(text))
        for match in _PHONE.finditer(text):
            for start, end in _pieces(text, *match.span()):
                written = text[start:end]
                groups = re.findall(r"\d+", _EXTENSION.sub("", written))
                if _is_list(groups) and "+" not in written:
                    continue
                is_phone = _says(text, start, end, _ABOUT_PHONES, before)
                number = self._number(written, groups, is_phone, is_chinese) if is_phone is not False else None
                if number:
                    yield Detail("phone", start, end, number)

    def _number(self, written: str, groups: list[str], is_phone: bool | None, is_chinese: bool) -> str | None:
        """E.164, or None if it is no phone number; `is_phone`: the words before it say that it is one."""
        digits = "".join(groups)
        if written.startswith(("+", "(+")):
            return _international(written, bool(is_phone) or len(groups) > 1)
        if written.startswith("00"):
            return _international(f"+{digits[2:]}", True) if is_phone or len(groups) > 2 else None
        if not is_phone and not _looks_national(written, groups, is_chinese):
            return None
        found = _national(written, self._regions)
        shape = [len(group) for group in groups]
        if found is None and len(digits) in (10, 11) and shape[-2:] == [3, 4] and (is_phone or _AREA.match(written)):
            # (555) 123-4567: no area has this code, but whoever writes it means a phone.
            found = f"+1{digits[-10:]}" if "US" in self._regions else None
        return digits if found is None and is_phone and shape == [3, 4] and "-" in written else found


def _international(written: str, is_formatted: bool) -> str | None:
    try:
        number = phonenumbers.parse(written)
    except phonenumbers.NumberParseException:
        return None
    is_number = phonenumbers.is_valid_number(number) or (is_formatted and phonenumbers.is_possible_number(number))
    return _e164(number) if is_number else None


@lru_cache(maxsize=4096)
def _national(written: str, regions: tuple[str, ...]) -> str | None:
    """E.164 of a number without a country code, by the first region in whose plan it is."""
    first = next(filter(str.isdecimal, written))
    for region in regions:
        plan = phonenumbers.PhoneMetadata.metadata_for_region(region)
        # Where numbers begin with a 0 at home (030 in Berlin), one without it is none.
        has_prefix = plan is not None and plan.national_prefix == "0" and region not in _WITHOUT_PREFIX
        if has_prefix and first != "0":
            continue
        try:
            number = phonenumbers.parse(written, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number_for_region(number, region):
            return _e164(number)
    return None


def _is_list(groups: list[str]) -> bool:
    """Several numbers, not one: 4 8 15 16 23 42; or more digits than a phone has."""
    return (
        sum(map(len, groups)) > 15
        or len(groups) > 6
        or [len(group) for group in groups] == [2] * 6
        or any(len(group) == 1 for group in groups[1:])
        or groups[0] in _DIGITS
    )


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Two numbers side by side, or one."""
    if other := _AFTER_A_DIGIT.match(text, start, end):
        start = other.end(1)
    written = text[start:end]
    cuts = [match.span() for match in re.finditer(r"\s?[ /]\s?", written)]
    for low, high in cuts:
        left, right = written[:low], written[high:]
        if sum(map(str.isdecimal, left)) >= 10 and sum(map(str.isdecimal, right)) >= 10:
            yield start, start + low
            yield from _pieces(text, start + high, end)
            return
    yield start, end


def _looks_national(written: str, groups: list[str], is_chinese: bool) -> bool:
    """Whether the form alone tells a phone number, without a word about phones."""
    shape = [len(group) for group in groups]
    digits = "".join(groups)
    if len(groups) == 1:
        return is_chinese and bool(_CHINESE_MOBILE.fullmatch(digits))
    if isbn.is_valid(digits) and "-" in written and len(groups) >= 4:
        return False
    if _AREA.match(written):
        return 2 <= shape[0] <= 5 and len(digits) >= 9
    if digits[0] == "0":
        is_code = 2 <= shape[0] <= 6 and min(shape[1:]) >= 2 and 9 <= len(digits) <= 12
        is_zip_or_ssn = shape in ([5, 4], [3, 2, 4]) and "-" in written
        return is_code and not is_zip_or_ssn and not (len(set(shape)) == 1 and shape[0] == 2 and "-" in written)
    if digits[0] == "1" and shape[0] == 1:
        return shape == [1, 3, 3, 4]
    return (
        (shape == [3, 3, 4] and digits[0] in "23456789" and (digits[3] in "23456789" or digits[0] in "348"))
        or (shape == [3, 4, 4] and bool(_CHINESE_MOBILE.fullmatch(digits)))
        or (shape == [3, 2, 2, 2] and digits[0] in "6789")
    )


def _e164(number: phonenumbers.PhoneNumber) -> str:
    extension = f";ext={number.extension}" if number.extension else ""
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164) + extension


# --- IBANs
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}", re.ASCII)


def ibans(text: str) -> Iterator[Detail]:
    """The IBANs of a text, with right checksums."""
    for match in _IBAN.finditer(text):
        run = match.group()
        ends = [end for end in range(len(run), 14, -1) if end == len(run) or not run[end].isalnum()]
        for end in ends:
            if iban.is_valid(run[:end], check_country=False):
                yield Detail(
                    "iban", match.start(), match.start() + len(run[:end].rstrip(" -")), iban.compact(run[:end])
                )
                break


# --- Payment cards
_CARD = re.compile(rf"(?<![{_LETTERS}.,/+#$€£¥-])(?<!\d:)\d(?:[ -]?\d){{11,18}}(?![{_LETTERS}])(?![.,:/-]\d)")
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3})?(?:\d{3})?"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}"  # Discover
    r"|(?:30[0-5]|3[689]\d)\d{11}"  # Diners
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14,17}"  # UnionPay
)
# Its prefixes are so many that one needs a word about cards.
_MAESTRO = re.compile(r"(?:50|5[6-9]|6\d)\d{10,17}")
_CARD_SHAPES = re.compile(r"\d+|\d{4}([ -])(?:\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|\d{6}\1\d{4,5})")


def cards(text: str, before: str = "") -> Iterator[Detail]:
    """The numbers of payment cards in a text: an issuer's prefix and length, and a right checksum."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if not luhn.is_valid(digits) or not _CARD_SHAPES.fullmatch(match.group()):
            continue
        verdict = _says(text, *match.span(), _ABOUT_CARDS, before)
        if verdict is not False and (_ISSUERS.fullmatch(digits) or (verdict and _MAESTRO.fullmatch(digits))):
            yield Detail("card", *match.span(), digits)


# --- IP addresses
_IPV4 = re.compile(r"(?<![A-Za-z0-9_.-])(?<![A-Za-z]/)(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_-]|\.\d)")
# Global, unique local and link-local addresses: other things of this form are code, such as a::b.
_IPV6 = re.compile(
    r"(?<![A-Za-z0-9_:.])(?:[23][0-9a-f]{3}|f[cd][0-9a-f]{2}|fe80):[0-9a-f:]{2,35}[0-9a-f](?![A-Za-z0-9_:])",
    re.IGNORECASE,
)
_VERSIONS = re.compile(
    r"\b(?:version|versions|release|firmware|section|chapter|build|driver|kernel|v)\b|§", re.IGNORECASE
)
_HOSTS = re.compile(
    r"\b(?:ip|ips|ipv4|address\w*|adress\w*|hosts?|server|ping|ssh|inet|client|gateway|dns|subnet|login|connect\w*|"
    r"network|router|curl|proxy|remote_addr)\b|//$|@$",
    re.IGNORECASE,
)


def addresses(text: str) -> Iterator[Detail]:
    """The IP addresses of a text, but for those that are nobody's: loopback, netmasks, broadcast and 0.0.0.0."""
    for match in _IPV4.finditer(text):
        address = _address(match.group())
        if isinstance(address, ipaddress.IPv4Address) and _is_address(text, match, address):
            yield Detail("ip", *match.span(), str(address))
    for match in _IPV6.finditer(text):
        found = _address(match.group())
        if found:
            yield Detail("ip", *match.span(), str(found))


def _address(written: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(written)
    except ValueError:
        return None


def _is_address(text: str, match: re.Match[str], address: ipaddress.IPv4Address) -> bool:
    """Whether a dotted quad is an address of somebody, and no version or section."""
    if address.is_loopback or address.is_unspecified or address.is_multicast or address.packed[0] in (0, 255):
        return False
    window = text[max(0, match.start() - _WINDOW) : match.start()]
    if _last(_VERSIONS, window) > _last(_HOSTS, window):
        return False
    is_port = re.match(r":\d{2,5}\b|/\d{1,2}\b", text[match.end() : match.end() + 6])
    return bool(max(address.packed) >= 20 or is_port or _HOSTS.search(window))
