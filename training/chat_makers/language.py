"""All language kinds: single words, lists, categories, sentences, short texts. KINDS maps a name to (weight, maker)."""

from chat_makers import language_categories, language_lists, language_sentences, language_texts, language_words

KINDS = (
    language_words.KINDS
    | language_lists.KINDS
    | language_categories.KINDS
    | language_sentences.KINDS
    | language_texts.KINDS
)
