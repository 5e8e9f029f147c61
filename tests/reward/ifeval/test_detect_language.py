"""Languages: a sentence is in its own and in no other; short texts, capitals, mixtures."""

import pytest

from qwen_align.reward.ifeval import latin_languages
from qwen_align.reward.ifeval.detect_language import SCRIPTS, is_in_language


def test_all_languages_of_ifeval_can_be_asked_for() -> None:
    official = "en es pt ar hi fr ru de ja it bn uk th ur ta te bg ko pl he fa vi ne sw kn mr gu pa ml fi"
    assert set(official.split()) <= set(SCRIPTS)


OFTEN_ASKED = "en es pt it pl vi fi sw tr hu ro".split()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The cat sleeps on the sofa because it is warm."),
        ("es", "El gato duerme en el sofá porque hace mucho calor en la casa y está cansado."),
        ("pt", "O gato dorme no sofá porque faz muito calor na casa e ele não está com fome."),
        ("it", "Il gatto dorme sul divano perché fa molto caldo in casa."),
        ("pl", "Kot śpi na kanapie, ponieważ jest ciepło."),
        ("vi", "Con mèo ngủ trên ghế sofa vì trời ấm."),
        ("fi", "Kissa nukkuu sohvalla, koska on lämmin."),
        ("sw", "Paka analala kwenye sofa kwa sababu kuna joto."),
        ("tr", "Kedi kanepede uyuyor çünkü hava sıcak."),
        ("hu", "A macska a kanapén alszik, mert meleg van."),
        ("ro", "Pisica doarme pe canapea pentru că este cald."),
    ],
)
def test_a_sentence_in_latin_letters_is_in_its_language_only(code: str, text: str) -> None:
    pytest.importorskip("langdetect", reason="not installed: pip install 'qwen-align[ifeval]'")
    for written in (text, text.lower(), text.upper()):
        assert [
            one
            for one in ("en", "es", "pt", "it", "pl", "vi", "fi", "sw", "tr", "hu", "ro")
            if is_in_language(written, one)
        ] == [code]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ru", "Кошка спит на диване, потому что это тёплое место."),
        ("uk", "Кіт спить на дивані, тому що це тепле місце."),
        ("bg", "Котката спи на дивана, защото е топло и се чувства добре."),
        ("mk", "Мачката спие на каучот затоа што е топло и се чувствува добро."),
        ("ar", "القطة تنام على الأريكة لأن الجو دافئ."),
        ("fa", "گربه روی مبل می‌خوابد چون هوا گرم است."),
        ("ur", "بلی صوفے پر سوتی ہے کیونکہ گرمی ہے۔"),
        ("hi", "बिल्ली सोफ़े पर सोती है क्योंकि गर्मी है।"),
        ("mr", "मांजर सोफ्यावर झोपते कारण ते उबदार आहे."),
        ("ne", "बिरालो सोफामा सुत्छ किनभने न्यानो छ।"),
        ("zh", "猫在沙发上睡觉，因为很暖和。"),
        ("ja", "猫は暖かいのでソファで寝ています。"),
        ("ko", "고양이는 따뜻하기 때문에 소파에서 잡니다."),
        ("th", "แมวนอนบนโซฟาเพราะอากาศอบอุ่น"),
        ("he", "החתול ישן על הספה כי חם."),
        ("el", "Η γάτα κοιμάται στον καναπέ επειδή κάνει ζέστη."),
        ("bn", "বিড়াল সোফায় ঘুমায় কারণ এটি গরম।"),
        ("ta", "பூனை சோபாவில் தூங்குகிறது."),
        ("te", "పిల్లి సోఫాలో నిద్రపోతోంది."),
        ("gu", "બિલાડી સોફા પર સૂવે છે."),
        ("pa", "ਬਿੱਲੀ ਸੋਫੇ ਤੇ ਸੌਂਦੀ ਹੈ।"),
        ("ml", "പൂച്ച സോഫയിൽ ഉറങ്ങുന്നു."),
    ],
)
def test_a_sentence_in_another_script_is_in_its_language_only(code: str, text: str) -> None:
    others = set(SCRIPTS) - {"zh-cn", "zh-tw"}
    assert {one for one in others - set(latin_languages.LATIN) if is_in_language(text, one)} == {code}
    assert is_in_language(text + " (ChatGPT)", code)
    assert not is_in_language(
        text + " Here is what this means in English: a cat sleeps on a sofa, because of the heat.", code
    )


def test_both_ways_of_writing_chinese() -> None:
    simple, full, either = "我们喜欢这个国家的语言。", "我們喜歡這個國家的語言。", "你好"
    asked = ("zh", "zh-cn", "zh-tw")
    assert [is_in_language(simple, code) for code in asked] == [True, True, False]
    assert [is_in_language(full, code) for code in asked] == [True, False, True]
    assert [is_in_language(either, code) for code in asked] == [True, True, True]
