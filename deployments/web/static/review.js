// Labels captured pictures one by one, the most doubtful first; each label has a key on the keyboard.

import { mayAskForKey, request } from "./api.js";
import { t } from "./words.js";
import { h, note, number, percent, say, smallButton } from "./dom.js";

const FETCHED = 50;
const PREFETCHED = 12; // number of pictures that can be labelled without a connection
const KEYS = "1234567890qwertyuiop".split("");
const WAITING = "cifar_ray.reviews"; // decisions that the server has not confirmed; they survive a reload and a lost connection
const RETRY_MS = 5000;

/** Fills `body` with captured pictures to label, with the keyboard or by touch. */
export class Review {
  constructor(body, classNames) {
    this.body = body;
    this.classNames = classNames;
    this.queue = [];
    this.done = [];
    this.pictures = new Map();
    document.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Shows the first picture that nobody has labelled. */
  async show() {
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
    const why = one.disagrees ? t("versions disagree") : one.abstain ? t("the model abstains") : percent(one.confidence);
    this.body.replaceChildren(
      h(
        "div",
        { className: "reviewing" },
        h("figure", {}, image, h("figcaption", { className: "meta" }, t("{model}: {predicted}, {why}. {count} to label.", { ...one, why, count: number(this.numOpen) }))),
        h("div", { className: "labels", role: "group", "aria-label": t("What does the picture show?") }, ...this.buttons(one)),
      ),
      this.foot(),
    );
    say(t("Predicted {predicted}, {why}.", { ...one, why }));
  }

  buttons(one) {
    const names = this.classNames();
    const button = (text, key, label) =>
      h(
        "button",
        { type: "button", className: text === one.predicted ? "button predicted" : "button", onclick: () => this.decide(label) },
        key ? h("kbd", {}, key) : null,
        text,
      );
    return [...names.map((name, i) => button(name, KEYS[i], name)), button(t("none of these"), "n", ""), button(t("skip"), "s", null)];
  }

  foot() {
    const undo = this.done.length ? smallButton(t("Undo (u): {label}", { label: this.done.at(-1).label || t("none of these") }), () => this.undo()) : null;
    const unsent = waiting().length;
    return h("p", { className: "meta" }, undo, " ", unsent ? t("{count} decisions wait for the connection.", { count: number(unsent) }) : "");
  }

  onKey(event) {
    if (!this.isShown() || !this.queue.length || event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const name = this.classNames()[KEYS.indexOf(event.key)];
    if (KEYS.includes(event.key) && name !== undefined) this.decide(name);
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

const waiting = () => JSON.parse(localStorage.getItem(WAITING) ?? "[]");
const store = (decisions) => localStorage.setItem(WAITING, JSON.stringify(decisions));
const wait = (decision) => store([...waiting(), decision]);
