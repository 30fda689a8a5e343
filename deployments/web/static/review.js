// Labels captured pictures one by one, the most doubtful first; each label has a key on the keyboard. If pictures have several labels,
// a key switches its label on or off, and Enter saves the labels.

import { mayAskForKey, request } from "./api.js";
import { t } from "./words.js";
import { h, note, number, percent, say, smallButton } from "./dom.js";

const FETCHED = 50;
const PREFETCHED = 12; // number of pictures that can be labelled without a connection
const KEYS = "1234567890qwertyiop".split(""); // without u, which is undo
const WAITING = "cifar_ray.reviews"; // decisions that the server has not confirmed; they survive a reload and a lost connection
const RETRY_MS = 5000;

/** Fills `body` with captured pictures to label, with the keyboard or by touch. `model()` returns `{ classNames, hasSeveralLabels }`. */
export class Review {
  constructor(body, model) {
    this.body = body;
    this.model = model;
    this.chosen = null; // labels of the shown picture, if it may have several
    this.queue = [];
    this.done = [];
    this.pictures = new Map();
    document.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Shows the first picture without a label, and takes the focus from the heading, which Enter would close. */
  async show() {
    await this.fill();
    if (document.activeElement?.matches("#review summary")) this.body.querySelector(".labels")?.focus();
  }

  async fill() {
    if (this.queue.length) return this.draw();
    this.body.replaceChildren(note("waiting", t("Reading…")));
    try {
      await this.send();
      const answer = await (await request(`captures?limit=${FETCHED}`)).json();
      this.numOpen = answer.num_open;
      this.queue = answer.captures.filter((one) => !waiting().some((decision) => decision.key === one.key));
      this.draw();
    } catch (error) {
      const again = smallButton(t("Try again"), () => {
        mayAskForKey();
        this.show();
      });
      this.body.replaceChildren(note("notice", h("strong", {}, error.message), " ", error.detail ?? "", " ", again));
      say(error.message);
    }
  }

  draw() {
    const [one] = this.queue;
    if (!one) {
      this.body.replaceChildren(note("hint", this.done.length ? t("All captured pictures have a label.") : t("No captured pictures to label.")), this.foot());
      return;
    }
    for (const next of this.queue.slice(0, PREFETCHED)) this.picture(next.key); // load the next pictures before they are shown
    const image = h("img", { alt: t("captured picture, predicted {predicted}", one), width: 448, height: 448 });
    this.picture(one.key).then((url) => (image.src = url), () => this.skip(one));
    this.chosen = this.model().hasSeveralLabels ? new Set(named(one.predicted, this.model().classNames)) : null;
    const why = one.disagrees ? t("versions disagree") : one.abstain ? t("the model abstains") : percent(one.confidence);
    this.body.replaceChildren(
      h(
        "div",
        { className: "reviewing" },
        h("figure", {}, image, h("figcaption", { className: "meta" }, t("{model}: {predicted}, {why}. {count} to label.", { ...one, why, count: number(this.numOpen) }))),
        h("div", { className: "labels", role: "group", tabIndex: -1, "aria-label": t("What does the picture show?") }, ...this.buttons(one)),
      ),
      this.foot(),
    );
    say(t("Predicted {predicted}, {why}.", { ...one, why }));
  }

  buttons(one) {
    const button = (text, key, onclick, more = {}) =>
      h("button", { type: "button", className: "button", onclick, ...more }, key ? h("kbd", {}, key) : null, text);
    const label = (name, i) => {
      const isPredicted = this.chosen ? this.chosen.has(name) : name === one.predicted;
      const pressed = this.chosen ? { "aria-pressed": String(isPredicted) } : {};
      return button(name, KEYS[i], () => this.choose(name), { className: isPredicted ? "button predicted" : "button", ...pressed });
    };
    return [
      ...this.model().classNames.map(label),
      this.chosen ? button(t("Save"), "Enter", () => this.save(), { className: "button primary" }) : null,
      button(t("none of these"), "n", () => this.decide("")),
      button(t("skip"), "s", () => this.decide(null)),
    ].filter(Boolean);
  }

  /** Labels the picture with a class; if it may have several labels, switches this label on or off. */
  choose(name) {
    if (!this.chosen) return this.decide(name);
    if (!this.chosen.delete(name)) this.chosen.add(name);
    const button = this.body.querySelectorAll(".labels .button")[this.model().classNames.indexOf(name)];
    button.setAttribute("aria-pressed", String(this.chosen.has(name)));
  }

  /** Labels the picture with the classes that are switched on, in the model's order. */
  save() {
    this.decide(this.model().classNames.filter((name) => this.chosen.has(name)).join(", "));
  }

  foot() {
    const undo = this.done.length ? smallButton(t("Undo (u): {label}", { label: this.done.at(-1).label || t("none of these") }), () => this.undo()) : null;
    const unsent = waiting().length;
    return h("p", { className: "meta" }, undo, " ", unsent ? t("{count} decisions wait for the connection.", { count: number(unsent) }) : "");
  }

  onKey(event) {
    if (!this.isShown() || !this.queue.length || event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const name = this.model().classNames[KEYS.indexOf(event.key)];
    if (KEYS.includes(event.key) && name !== undefined) this.choose(name);
    else if (event.key === "Enter" && this.chosen && !event.target.closest("button:not([aria-pressed]), a, summary")) this.save();
    else if (event.key === "n") this.decide("");
    else if (event.key === "s") this.decide(null);
    else if (event.key === "u") this.undo();
    else return;
    event.preventDefault();
  }

  isShown() {
    return this.body.closest("details").open && !document.querySelector("dialog[open]");
  }

  /** Labels the current picture; `null` skips it for now. */
  decide(label) {
    const [one] = this.queue;
    if (!one) return;
    this.queue.shift();
    if (label !== null) {
      this.done.push({ ...one, label });
      this.numOpen -= 1;
      wait({ key: one.key, label });
      this.send();
    }
    if (this.queue.length) this.draw();
    else this.show();
  }

  undo() {
    const last = this.done.pop();
    if (!last) return;
    this.queue.unshift(last);
    this.numOpen += 1;
    wait({ key: last.key, undo: true });
    this.send();
    this.draw();
  }

  skip(one) {
    this.queue = this.queue.filter((other) => other !== one);
    this.draw();
  }

  picture(key) {
    if (!this.pictures.has(key)) {
      const url = request(`captures/picture?${new URLSearchParams({ key })}`).then(async (response) => URL.createObjectURL(await response.blob()));
      url.catch(() => this.pictures.delete(key));
      this.pictures.set(key, url);
    }
    return this.pictures.get(key);
  }

  /** Sends decisions in order; decisions that cannot be sent stay in the queue. */
  async send() {
    if (this.isSending) return;
    this.isSending = true;
    try {
      for (let [next] = waiting(); next; [next] = waiting()) {
        try {
          await request("reviews", { method: "POST", body: JSON.stringify(next), headers: { "Content-Type": "application/json" } });
        } catch (error) {
          if (!error.status || error.status >= 500 || error.status === 401 || error.status === 429) throw error;
          say(error.message); // for example, the picture was deleted meanwhile
        }
        store(waiting().slice(1));
      }
    } catch {
      setTimeout(() => this.send(), RETRY_MS);
    } finally {
      this.isSending = false;
      this.body.querySelector(":scope > .meta")?.replaceWith(this.foot());
    }
  }
}

/** The classes in a text that separates them by commas; a name may itself contain commas. */
function named(text, classNames) {
  const longestFirst = [...classNames].sort((one, other) => other.length - one.length);
  const found = [];
  for (let rest = text; rest; ) {
    const name = longestFirst.find((known) => rest === known || (rest.startsWith(known) && rest[known.length] === ","));
    if (name === undefined) return [];
    found.push(name);
    rest = rest.slice(name.length + 1).trimStart();
  }
  return found;
}

const waiting = () => JSON.parse(localStorage.getItem(WAITING) ?? "[]");
const store = (decisions) => localStorage.setItem(WAITING, JSON.stringify(decisions));
const wait = (decision) => store([...waiting(), decision]);
