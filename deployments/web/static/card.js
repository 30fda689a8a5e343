// One picture and the model's prediction for it.

import { ApiError, request } from "./api.js";
import { t } from "./words.js";
import { h, note, percent, say, smallButton } from "./dom.js";
import { describeClass } from "./models.js";

const BARS = 5;
const MOST_SHOWN = 60; // characters of a description; three to five lines on a phone

/**
 * Creates the card of a file: `element` to show, `ask()` to classify it (again), `close()` to remove it and free its memory.
 *
 * `enqueue` runs a job when its turn comes, `chosenModel()` returns the model to use, and the card's button calls `onRemove()`.
 */
export function createCard(file, { enqueue, chosenModel, onRemove }) {
  const name = file.name || t("pasted picture");
  const url = URL.createObjectURL(file);
  const picture = h("img", { src: url, alt: t("The picture {name}", { name }), decoding: "async" });
  picture.onerror = () => picture.replaceWith(note("hint", t("no preview")));
  const figure = h("figure", {}, picture);
  const answer = h("div", { className: "answer" });
  const element = h(
    "li",
    { className: "card" },
    figure,
    h("div", { className: "says" }, h("p", { className: "name", title: name }, name), answer),
    h("button", { type: "button", className: "remove", "aria-label": t("Remove {name}", { name }), onclick: onRemove }, "×"),
  );
  const life = new AbortController();
  let round = 0; // only the answer to the latest request is shown

  function show(...children) {
    figure.querySelector(".heat")?.remove();
    answer.replaceChildren(...children.filter(Boolean));
  }

  function ask() {
    const mine = ++round;
    const isCurrent = () => mine === round && !life.signal.aborted;
    element.setAttribute("aria-busy", "true");
    show(note("waiting", t("Classifying…")));
    enqueue(async () => {
      if (!isCurrent()) return;
      try {
        const result = await classify(file, chosenModel(), {
          signal: life.signal,
          onWait: (s) => isCurrent() && show(note("waiting", t("The server is busy; trying again in {s} s…", { s: Math.ceil(s) }))),
        });
        if (isCurrent()) showAnswer(result);
      } catch (error) {
        if (isCurrent()) showFailure(error);
      }
      if (isCurrent()) element.removeAttribute("aria-busy");
    });
  }

  function showAnswer(result) {
    const { class_name: best, confidence, abstain, labels } = result;
    const found = labels?.filter((label) => label.above_threshold).map((label) => label.class);
    const said = found ? found.join(", ") || t("None of the labels") : best;
    say(abstain ? t("{name}: not sure, perhaps {said}.", { name, said }) : `${name}: ${said}${found ? "" : `, ${percent(confidence)}`}.`);
    const [inServer, inAll] = [result.timings_ms.total, result.tookMs].map((ms) => `${Math.round(ms)} ms`);
    const shown = labels?.map((label) => ({ ...label, class_name: label.class })) ?? result.top_k.slice(0, BARS);
    const described = (className) => describeClass(result.model, className);
    const bars = h("ol", { className: "bars" }, ...shown.map((one, place) => bar(one, place, described(one.class_name))));
    const description = abstain || found ? undefined : described(best);
    show(
      h("h3", {}, abstain ? t("Not sure") : said),
      description && describe(description),
      abstain && note("unsure", t("This picture is unlike those that the model knows. Its best guesses:")),
      bars,
      why(result, shown),
      note("meta", `${result.model}@${result.version} · ${t("{inServer} in the server, {inAll} in total", { inServer, inAll })}`),
    );
    requestAnimationFrame(() => bars.classList.add("grown"));
  }

  function showFailure(error) {
    const { message, detail } = inWords(error);
    say(`${name}: ${message}`);
    show(
      h("h3", { className: "failed" }, t("No answer")),
      h("p", {}, message),
      detail && note("meta", detail),
      h("p", {}, smallButton(t("Try again"), ask, t("Try {name} again", { name }))),
    );
  }

  /** A button that shows the heatmap of a class over the picture, and a list to choose the class. */
  function why(result, shown) {
    const maps = new Map(); // by class
    const status = h("span", { className: "meta", role: "status" });
    const choices = shown.map((one) => h("option", {}, one.class_name));
    const chooser = h("select", { "aria-label": t("Class to look for in {name}", { name }), hidden: true, onchange: update }, ...choices);
    const button = smallButton(t("Why?"), toggle, t("Why? Show where the model looked in {name}", { name }));
    button.setAttribute("aria-pressed", "false");

    function toggle() {
      chooser.hidden = !chooser.hidden;
      button.setAttribute("aria-pressed", String(!chooser.hidden));
      update();
    }

    async function update() {
      figure.querySelector(".heat")?.remove();
      status.textContent = "";
      if (chooser.hidden) return;
      const className = chooser.value;
      status.textContent = t("Computing…");
      try {
        if (!maps.has(className)) maps.set(className, await explain(file, result, className, life.signal));
        if (chooser.hidden || chooser.value !== className || !button.isConnected) return;
        figure.append(h("img", { className: "heat", src: maps.get(className), alt: t("Heatmap for {className}", { className }) }));
        status.textContent = t("Warm colours mark evidence for {className}.", { className });
      } catch (error) {
        if (!life.signal.aborted) status.textContent = Object.values(inWords(error)).join(" ");
      }
    }

    return h("div", { className: "why" }, button, chooser, status);
  }

  function close() {
    life.abort();
    URL.revokeObjectURL(url);
    element.remove();
  }

  return { element, ask, close };
}

/** The description of a class; a long one shows its first lines until the user opens it. */
function describe(text) {
  const isLong = text.length > MOST_SHOWN;
  const [outer, inner] = isLong ? ["details", "summary"] : ["div", "p"];
  return h(outer, { className: "description" }, h(inner, { dir: "auto" }, text));
}

/** A class, its probability and its description; with several labels per picture, a tick marks the labels that the picture has. */
function bar({ class_name: name, probability, above_threshold: isLabel }, place, title) {
  const fill = h("span", { className: "fill" });
  fill.style.setProperty("--share", probability);
  return h(
    "li",
    { className: isLabel ?? place === 0 ? "chosen" : "" },
    h("span", { className: "class", title }, isLabel ? `✓ ${name}` : name),
    h("span", { className: "percent" }, percent(probability)),
    h("span", { className: "bar", "aria-hidden": "true" }, fill),
  );
}

/** The answer of `POST /predict`, with `tookMs`, the time from sending the request to the answer. */
async function classify(file, model, options) {
  const most = Number(document.documentElement.dataset.maxImageBytes);
  if (file.size > most) {
    throw new ApiError(
      t("This picture is too large."),
      t("It has {size}; the maximum is {most}.", { size: megabytes(file.size), most: megabytes(most) }),
      413,
    );
  }
  if (file.size === 0) throw new ApiError(t("This file cannot be read as a picture."), t("The file is empty."), 422);
  const query = new URLSearchParams({ top_k: BARS, ...(model && { model }) });
  let started = 0;
  const response = await request(`predict?${query}`, { ...(await picture(file)), ...options, onSend: () => (started = performance.now()) });
  return { ...(await response.json()), tookMs: performance.now() - started };
}

/** Object URL of a heatmap, valid until `signal` aborts. */
async function explain(file, { model, version }, className, signal) {
  const query = new URLSearchParams({ model: `${model}@${version}`, class: className });
  const response = await request(`explain?${query}`, { ...(await picture(file)), signal });
  const url = URL.createObjectURL(await response.blob());
  signal.addEventListener("abort", () => URL.revokeObjectURL(url));
  return url;
}

/** A request whose body is the file. Reading it here tells a moved or unreadable file from an error of the server. */
async function picture(file) {
  try {
    return { method: "POST", body: await file.arrayBuffer(), headers: { "Content-Type": "application/octet-stream" } };
  } catch {
    throw new ApiError(t("This file cannot be read."), t("Was it moved, or is it a folder?"));
  }
}

function inWords(error) {
  if (error instanceof ApiError) return { message: error.message, detail: error.detail };
  console.error(error);
  return { message: t("Something went wrong on this page."), detail: String(error) };
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
