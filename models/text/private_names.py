"""Names of persons who take part in a conversation: who introduces themselves, is addressed, or signs.

No recogniser of names comes with its model in a wheel that somebody maintains, so a name is found where the words
around it say that it is one: "my name is", "this is ... speaking", "Dear Ms", "Dr.", a signature, a field "Name:",
in nine languages. A name in mid-sentence is found if the same conversation introduces it anywhere. Others are not,
which also leaves Albert Einstein where he is: he is knowledge, and nobody's private detail.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import regex

from models.text.private_detail import Detail

_WORD = r"(?:\p{Lu}\.(?:\s?\p{Lu}\.)*|(?:\p{Lu}['’])?\p{Lu}[\p{Ll}\p{M}]+(?:[-'’]\p{Lu}\p{Ll}+)*(?:\p{Lu}\p{Ll}+)?)"
_PARTICLE = r"(?:van der|van den|van|von|zu|de la|de|del|della|der|den|la|le|di|da|do|dos|das|al|el|bin|ibn|ter|ten)"
_NAME_END = r"(?![\p{L}\d@_]|['’](?!s\b)\p{L})"
_NAME = rf"(?P<name>(?:{_PARTICLE}[ ])?{_WORD}(?:[ ](?:{_PARTICLE}[ ])?{_WORD}){{0,3}}){_NAME_END}"
_FULL_NAME = rf"(?P<name>{_WORD}(?:[ ](?:{_PARTICLE}[ ])?{_WORD}){{1,3}}){_NAME_END}"
_STRICT_END = r"(?=\s*(?:[.,!?;:)\"”\n]|$))"

# What stands where a name could, and is none; lines that begin with ## say what they have.
_NO_NAMES_TEXT = """
## who is addressed without a name
sir madam customer customers client team all everyone everybody there world friend friends folks guys colleague
colleagues santa diary lord god reader readers editor hiring manager support service management department staff
president professor doctor dr mr mrs ms miss prof judge captain king queen prince princess mom mum mommy dad
daddy mother father grandma grandpa honey darling sweetheart baby user assistant siri alexa google cortana
chatgpt bot ai again parents students teacher teachers members partner partners sirs ladies gentlemen company
neighbor neighbour universe america usa pepper who everything anyone someone nobody name number mayor
governor senator committee board council valued guest guests passenger subscriber applicant candidate human
kitty
## words at the beginning of a sentence
the a an this that these those it he she we they you i my your his her our their not no yes ok okay oh well so
if in on at by for from to of and or but as is are was were be been do does did can could would shall should
might must have has had thanks thank please sorry sure yeah bye goodbye hello hi hey good great nice how what
when where why which just also very really still here now then today tomorrow yesterday tonight later anytime
sometime back let new old best regards sincerely cheers welcome congratulations happy merry looking going using
getting trying currently never always actually hoping glad feeling born sad tired busy fine ready excited
interested confused afraid free home alone lost late early single married retired available thinking happiness
amazing awesome correct wrong true false important unknown none null string integer boolean int str first last
full surname time morning evening afternoon night day week month year maybe probably perfect absolutely about
## days, months
monday tuesday wednesday thursday friday saturday sunday january february march july september october november
december easter christmas
## nationalities, beliefs, professions
american british english german french spanish italian dutch portuguese chinese japanese korean indian mexican
canadian australian russian irish scottish welsh polish swiss austrian belgian swedish norwegian danish finnish
greek turkish european african asian latino hispanic black white brazilian catholic christian jewish muslim
hindu buddhist atheist mormon protestant republican democrat vegan vegetarian batman superman spiderman engineer
software developer data scientist nurse lawyer student accountant director senior junior sales principal lead
product project marketing account executive officer representative chef detective agent pirate wizard robot
alien patient piggy leaving filipino mechanical electrical humanity express dental legend pre
apprentice terminator jamaican nigerian egyptian israeli iranian pakistani vietnamese thai cuban peruvian colombian
strange strangelove stark right incredible brightside potato engineering science
studies um uh ah hm hmm haha hahaha lol
nope dang don unfortunately honestly eh wow omg yep yup nah mhm alright mostly usually
## places that people say they are from or in
london paris berlin rome madrid york spain france germany italy england europe africa asia texas california
## German
damen herren herr frau kollegen kollegin kolleginnen kunde kunden kundin freunde freundin gott leser eltern mama
papa oma opa grüße gruß präsident präsidentin minister ministerin kanzler kanzlerin studentin deutscher deutsche
österreicher schweizer lehrer lehrerin arzt ärztin ingenieur rentner mutter vater sie ihnen welt zusammen leute
alle doktor professorin bürgermeister ihr ihre euer eure der die das ein eine wetten programmierer vegetarier
christ moslem anfänger mitglied fan
## French
monsieur madame messieurs mesdames clients collègues amis ami amie tous toutes français française anglais
docteur étudiant étudiante désolé désolée content contente monde equipe équipe président présidente le la les
## Spanish, Italian, Portuguese, Dutch
señor señora señores cliente clientes amigo amigos equipo todos ingeniero estudiante español española mundo
signore signora signori amici tutti mondo ingegnere studente italiano italiana senhor senhora amigas brasileiro
portugues português heer mevrouw klant klanten collega iedereen allemaal wereld nederlander dios dio deus
"""
_NO_NAMES = frozenset(re.sub(r"##.*", "", _NO_NAMES_TEXT).split())
# Less those that are names behind a title or a first name: Dr. King, Betty White.
_NEVER_NAMES = _NO_NAMES - {"king", "white", "black", "christian", "prince", "english", "french", "london", "york"}
# Behind another word they make a company of it, or a place.
_OF_COMPANIES = {
    *(
        "inc",
        "ltd",
        "llc",
        "gmbh",
        "corp",
        "group",
        "bank",
        "hotel",
        "restaurant",
        "store",
        "street",
        "avenue",
        "team",
    ),
    *("support", "service", "department", "office", "clinic", "center", "centre", "garden", "university", "school"),
}

_TITLE = (
    r"(?:(?:Mr|Mrs|Ms|Mx|Dr|Prof|Sr|Sra|Srta)\.? |(?:Mister|Miss|Professor|Doctor|Señora?|Madame|Monsieur|Signora?) |"
    r"(?:Herrn?|Frau) (?:(?:Dr|Prof)\. )*|(?:Mme|Mlle|Sig\.ra|Sig\.|Sigra|Dott\.|Senhora?|Dona|Dhr\.|[Mm]evrouw|"
    r"[Mm]eneer|[Mm]evr\.) )"
)
_CLOSING = (
    r"(?:(?:(?:[Bb]est|[Kk]ind|[Ww]arm|[Kk]indest|[Ww]armest) )?[Rr]egards|[Bb]est wishes|[Bb]est|"
    r"[Ss]incerely(?: yours)?|[Yy]ours(?: (?:sincerely|truly|faithfully))?|[Rr]espectfully|"
    r"[Cc]heers|[Tt]hanks|[Tt]hank you|[Ll]ove|[Ss]igned|"
    r"(?:[Mm]it )?(?:[Ff]reundlichen?|[Vv]iele|[Ll]iebe|[Bb]este|[Hh]erzliche) Gr(?:ü|ue)(?:ß|ss)en?|LG|VG|MfG|"
    r"[Cc]ordialement|[Bb]ien à vous|[Ss]alutations|(?:[Uu]n )?(?:[Cc]ordial )?[Ss]aludos?|[Aa]tentamente|"
    r"[Cc]ordiali saluti|[Dd]istinti saluti|[Ss]aluti|[Aa]tenciosamente|[Aa]braços?|[Cc]umprimentos|"
    r"(?:[Mm]et )?(?:[Vv]riendelijke|[Hh]artelijke) groet(?:en)?|[Gg]roet(?:en|jes)?)"
)
_RELATIVES = (
    "husband wife son daughter brother sister mother father mom mum dad uncle aunt cousin nephew niece grandson "
    "granddaughter grandmother grandfather fiancé fiancée boyfriend girlfriend boss roommate neighbor neighbour "
    "coworker colleague"
)
# The most frequent family names of China, less those that are frequent words too (于, 方, 白).
_HAN_COMPOUND = "欧阳|司马|上官|诸葛|东方|皇甫|尉迟|公孙|慕容|令狐|司徒|夏侯|端木"
_HAN_FAMILY = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭罗梁宋郑谢韩唐冯董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田姜范"
    "石姚谭廖邹熊金陆郝孔崔康毛邱秦江史顾侯邵孟龙段雷钱汤尹黎贺龚文"
)
_HAN_WORDS = "们是的在不有没这那什么怎个很都也要会说叫了来去做过吃看好你我他她它得地着吗呢吧啊"
_HAN_NAME = rf"(?P<name>(?:{_HAN_COMPOUND}|[{_HAN_FAMILY}])(?:(?![{_HAN_WORDS}])\p{{Han}}){{1,2}})"
_HAN_END = r"(?=\s*(?:[，。！？、；,.!?;:：）)\n]|$))"


class _Rule(NamedTuple):
    """Where names stand."""

    pattern: "regex.Pattern[str]"
    words: frozenset[str]
    """The expression is looked for only in texts with one of these words, in small letters."""

    in_lines: bool
    """And only in texts of several lines."""


def _rule(words: str, pattern: str, in_lines: bool = False) -> _Rule:
    return _Rule(regex.compile(pattern), frozenset(words.split()), in_lines)


_BEGIN = r"(?:^|[\n.!?\"“] ?)"
_RULES = (
    # I introduce myself.
    _rule(
        "name heiße heisse appelle nom llamo nombre chiamo nome chamo naam heet spricht call",
        r"(?i:\bmy (?:full |first |last )?name is|\bmy name['’]s|\bmein name ist|\bich heiße|\bich heisse|"
        r"\bje m['’]appelle|\bmon nom est|\bme llamo|\bmi nombre es|\bmi chiamo|\bil mio nome è|\bmeu nome é|"
        r"\bme chamo|\bchamo-me|\bmijn naam is|\bik heet|\bhier spricht|\bcall me)"
        rf"[ ,:]+(?:{_TITLE})?{_NAME}",
    ),
    # The same in small letters, as people chat: a word or two, and then the clause ends.
    _rule(
        "name",
        r"(?i:\bmy (?:full |first |last )?name(?: is|['’]s) )(?P<name>\p{Ll}{2,15}(?: \p{Ll}{3,15})?)"
        r"(?=\s*(?:[.,!?;\n]|$|\band\b|\bfrom\b))",
    ),
    _rule("name", rf"\b(?:[Hh]er|[Hh]is) name is {_NAME}{_STRICT_END}"),
    _rule(
        "this hier ici",
        rf"\b(?:[Tt]his is|[Hh]ier ist|[Ii]ci) (?:{_TITLE})?{_NAME}"
        r"(?=,? (?:speaking|here|calling|from|with|am Apparat)\b)",
    ),
    _rule("again speaking calling", rf"\b[Ii]t['’]s {_NAME}(?=,? (?:again|speaking|calling)\b)"),
    _rule("hi hello hey", rf"(?:^|\n)(?:[Hh]i|[Hh]ello|[Hh]ey),? (?:[Ii]t['’]s|this is) {_NAME}{_STRICT_END}"),
    _rule("voicemail", rf"(?<![\p{{L}}\d]){_NAME}(?=['’]s voicemail)"),
    _rule("ici", rf"\b[Bb]onjour,? ici {_NAME}{_STRICT_END}"),
    _rule(
        "m am bin suis soy sono sou ben",
        r"\b(?:[Ii]['’]m|[Ii] am|[Ii]ch bin|[Jj]e suis|[Ss]oy|[Ss]ono|[Ee]u sou|[Ii]k ben) "
        + _NAME
        + r"(?=\s*(?:[,.!](?!\d)|$|\n|(?:and|und|et|y|e|en) \p{L}|from\b|your\b|de la\b|aus\b|with\b))",
    ),
    _rule(
        "speaking under",
        r"(?:\b[Yy]ou(?:['’]| a)re speaking (?:with|to)|(?:\bunder the name(?: of)?|\b[Ii]t(?:['’]s| is) under)|"
        rf"\b(?:[Pp]ut|[Bb]ook|[Rr]eserv\p{{L}}+|[Aa]ppointment)\b[^.!?\n]{{0,20}} under) "
        rf"(?:{_TITLE})?{_NAME}{_STRICT_END}",
    ),
    _rule(
        _RELATIVES,
        rf"\b[Mm]y (?:\p{{Ll}}+ )?(?:{_RELATIVES.replace(' ', '|')})(?:['’]s name is|,| is called| is named)? "
        + _NAME,
    ),
    _rule("agree hereby undersigned confirm declare", rf"{_BEGIN}I, {_NAME}(?=,)"),
    # A title, or a greeting.
    _rule(
        "mr mrs ms mx mister miss dr prof professor doctor señor señora sr sra srta madame monsieur signor signora "
        "herr herrn frau mme mlle sig dott senhor senhora dona dhr mevr mevrouw meneer",
        rf"(?<![\p{{L}}\d])(?<!\d (?:\p{{Lu}}\p{{Ll}}+ ){{1,3}}){_TITLE}{_NAME}",
    ),
    _rule("m", rf"(?<![\p{{L}}\d.] )(?<![\p{{L}}\d.])M\. {_NAME}(?= (?:n['’]|est|a |et |va|dit|qui|sera|doit|peut))"),
    _rule(
        "dear hi hello hey good hallo guten hola ciao olá oi dag hoi bonjour",
        r"(?:^|[\n.!?,\"“>] ?)(?:[Oo]h,? )?(?:[Dd]ear|[Hh]i|[Hh]ello|[Hh]ey|[Gg]ood (?:morning|afternoon|evening)|"
        r"[Hh]allo|[Gg]uten (?:Tag|Morgen)|[Hh]ola|[Cc]iao|[Oo]lá|[Oo]i|[Dd]ag|[Hh]oi|[Bb]onjour)"
        rf"(?: again| there)?,? (?:{_TITLE})?{_NAME}{_STRICT_END}",
    ),
    _rule(
        "lieber liebe geehrte geehrter cher chère estimado estimada querido querida gentile caro cara prezado "
        "prezada beste geachte",
        r"(?:^|\n)(?:Lieber?|Sehr geehrte[rs]?|Ch(?:er|ère)|Estimad[oa]|Querid[oa]|Gentile|Car[oa]|Prezad[oa]|Beste|"
        rf"Geachte) (?:{_TITLE})?{_NAME}(?=[,!:] *(?:\n|$))",
    ),
    # A signature: the line after the closing words, or at the end of a text in their line.
    _rule(
        "regards wishes best sincerely yours truly faithfully respectfully cheers thanks you love signed grüße "
        "grüßen gruß gruss gruessen grüssen lg vg mfg cordialement vous salutations saludo saludos atentamente "
        "saluti atenciosamente abraço abraços cumprimentos groet groeten groetjes",
        rf"(?m:^)(?:[^\n]{{0,60}}[.!] )?{_CLOSING}[,!.]?[ ]*\n\s*{_NAME}(?=\s*(?:$|\n|,))",
        in_lines=True,
    ),
    _rule(
        "cheers regards signed yours",
        rf"(?:^|[\n.!] ?)(?:Cheers|(?:Best |Kind )?[Rr]egards|Signed|Yours \p{{Ll}}+),? {_NAME}(?=\s*$)",
    ),
    # A field.
    _rule(
        "name nombre nom nome naam patient contact",
        r"(?:^|[\n,;|{\"'(*] *)(?i:(?:full |your )?name|nom|nombre|nome|naam|vor- und nachname|patient|contact)"
        r"\"?[ ]?[:=]\**[ ]*\"?" + _FULL_NAME + r"(?=\s*(?:[,;|\n\"')*]|$))",
    ),
    _rule(
        "name firstname lastname first_name last_name surname vorname nachname prénom apellido apellidos cognome "
        "sobrenome achternaam",
        r"(?i:\b(?:first[ _]?name|last[ _]?name|family name|surname|"
        r"(?:customer|client|patient|contact|guest)(?:['’]s)? name|vorname|nachname|prénom|"
        r"apellidos?|cognome|sobrenome|achternaam))\"?[ ]?[:=]\**[ ]*\"?" + _NAME + r"(?=\s*(?:[,;|\n\"')*]|$))",
    ),
)
# Chinese has no spaces, so these are looked for wherever there is a Chinese character.
_HAN_RULES = tuple(
    map(
        regex.compile,
        (
            rf"(?:我|他|她)叫(?:做)?{_HAN_NAME}{_HAN_END}",
            rf"(?:我的名字(?:是|叫)|姓名[:：]) ?{_HAN_NAME}",
            rf"我是{_HAN_NAME}{_HAN_END}",
            rf"(?:我|免贵)姓(?P<name>{_HAN_COMPOUND}|[{_HAN_FAMILY}]){_HAN_END}",
            r"(?<![《·])(?<![^\P{Han}问是的和找给跟向请到约叫见位了让帮联系转])"
            rf"(?P<name>(?:{_HAN_COMPOUND})\p{{Han}}{{0,2}}?|[{_HAN_FAMILY.replace('文', '').replace('高', '')}])"
            r"(?:先生|女士|小姐|太太|老师|医生|经理)",
        ),
    )
)
_RULES_OF: dict[str | bytes, list[_Rule]] = {}
for _each in _RULES:
    for _trigger in _each.words:
        _RULES_OF.setdefault(_trigger, []).append(_each)
        _RULES_OF.setdefault(_trigger.encode(), []).append(_each)
_TRIGGERS: frozenset[str | bytes] = frozenset(_RULES_OF)
_WORDS = re.compile(r"\w+")
# Splitting bytes is four times as fast as a regular expression, and most texts are ASCII.
_ASCII_WORDS = bytes(code if chr(code).isalnum() or code == ord("_") else ord(" ") for code in range(128)) + bytes(
    128
)
_HAN = re.compile("[\u4e00-\u9fff]")


def persons(text: str) -> Iterator[Detail]:
    """The names in a text that its words introduce; those of two rules may overlap."""
    lowered = text.lower()
    if lowered.isascii():
        triggers = _TRIGGERS.intersection(lowered.encode().translate(_ASCII_WORDS).split())
    else:
        triggers = _TRIGGERS.intersection(_WORDS.findall(lowered))
    if triggers:
        several_lines = "\n" in text
        for rule in {rule: None for word in triggers for rule in _RULES_OF[word]}:
            if several_lines or not rule.in_lines:
                for match in rule.pattern.finditer(text):
                    yield from _named(text, *match.span("name"))
    if not text.isascii() and _HAN.search(text):
        for pattern in _HAN_RULES:
            for match in pattern.finditer(text):
                yield from _named(text, *match.span("name"))


def _named(text: str, start: int, end: int) -> Iterator[Detail]:
    """The name there, without words that are none at its end; nothing if its first word is none."""
    words = text[start:end].split(" ")
    for number, word in enumerate(words):
        is_particle = word[0].islower() and words[-1][0].isupper()
        is_initial = len(word) == 2 and word[1] == "."
        is_after = number > 0 or text[:start].endswith(("Mr. ", "Mrs. ", "Ms. ", "Dr. ", "Mr ", "Mrs ", "Ms ", "Dr "))
        if number and word.lower() in _OF_COMPANIES:
            return
        nothing = _NEVER_NAMES if is_after else _NO_NAMES
        if word.lower().rstrip(".") in nothing and not is_particle and not is_initial:
            words = words[:number]
            break
    while words and words[-1][0].islower() and words[0][0].isupper():
        words.pop()
    name = " ".join(words)
    if any(len(word.rstrip(".")) > 1 for word in words) or _HAN.match(name):
        yield Detail("person", start, start + len(name), name.lower())


def mentions(text: str, names: Iterable[str]) -> list[Detail]:
    """Where a text has one of these names, whole or a word of it, with capital letters as names have."""
    parts = {part for name in names for part in (name, *name.split(" ")) if len(part) > 2 or _HAN.match(part)}
    parts = {part for part in parts if len(part) > 1}
    parts -= _NO_NAMES
    lowered = text.lower()
    found = []
    for part in sorted(parts, key=len, reverse=True):
        if part in lowered:
            for match in regex.finditer(
                rf"(?<![\p{{Latin}}\d]){regex.escape(part)}(?![\p{{Latin}}\d])", text, regex.I
            ):
                if _is_mention(text, match.start(), match.end()):
                    found.append(Detail("person", match.start(), match.end(), part))
    return found


def _is_mention(text: str, start: int, end: int) -> bool:
    """Will and Mark, but not "Will you" or "mark it": capital letters, and at the beginning of a sentence a comma."""
    if not text[start].isupper() and not regex.match(r"\p{Han}", text[start]):
        return False
    begins = not text[:start].rstrip() or text[:start].rstrip()[-1] in ".!?\n" or "\n" in text[start - 1 : start]
    return (
        not begins
        or " " in text[start:end]
        or text[end : end + 1] in (",", "!", "'", "’", ".", ":", "")
        or bool(_HAN.match(text[start]))
    )
