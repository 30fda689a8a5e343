// Translations of the page from words/LANGUAGE.json. The English text in the code is the key of each translation.

const LANGUAGES = ["de", "es", "zh"];

/** The language of the page: the first of the browser's languages that is available; `?lang=` overrides it. */
export const language = choose();

function choose() {
  const wanted = [new URLSearchParams(location.search).get("lang"), ...navigator.languages].filter(Boolean);
  for (const tag of wanted) {
    const name = tag.toLowerCase().split("-")[0];
    if (name === "en" || LANGUAGES.includes(name)) return name;
  }
  return "en";
}

const translations = await read();

async function read() {
  if (language === "en") return {};
  try {
    return await (await fetch(new URL(`words/${language}.json`, import.meta.url))).json();
  } catch {
    return {}; // fall back to English
  }
}

/** A text in the page's language; `{name}` stands for a value. */
export function t(english, values = {}) {
  return (translations[english] ?? english).replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

/** Translates the texts of the HTML. */
function translatePage() {
  document.documentElement.lang = language;
  document.title = t(document.title);
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode;
    const [before, english, after] = node.data.match(/^(\s*)(.*?)(\s*)$/s).slice(1);
    const words = english.replace(/\s+/g, " ");
    if (words in translations) node.data = before + translations[words] + after;
  }
  for (const element of document.querySelectorAll("[aria-label]")) element.setAttribute("aria-label", t(element.getAttribute("aria-label")));
}

if (language !== "en") translatePage();
