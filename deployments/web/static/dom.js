// Creates elements; strings become text, never markup.

import { language } from "./words.js";

export const $ = (id) => document.getElementById(id);

/** An element with properties (`class`, `aria-…`, `data-…` and `role` as attributes, `on…` as listeners) and children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name === "className" ? "class" : name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A paragraph with a CSS class. */
export const note = (className, ...children) => h("p", { className }, ...children);

/** A small button; `label` describes it to screen readers if its text is not enough. */
export function smallButton(text, onclick, label) {
  return h("button", { type: "button", className: "quiet", "aria-label": label, onclick }, text);
}

/** A probability as text; never 100 % or 0 %, because a model is never completely sure. */
export function percent(probability) {
  if (probability > 0.995) return "> 99 %";
  if (probability < 0.005) return "< 1 %";
  return `${Math.round(probability * 100)} %`;
}

export const number = (value) => value.toLocaleString(language);

/** Announces a text to screen readers. */
export function say(text) {
  $("said").textContent = text;
}
