// The page: connects sources of pictures, cards, the list of models and the gallery.

import { mayAskForKey } from "./api.js";
import { createCard } from "./card.js";
import { $, h, say, smallButton } from "./dom.js";
import { listen, offerSamples } from "./intake.js";
import { Mistakes } from "./mistakes.js";
import { chosenModel, loadModels } from "./models.js";
import { createQueue } from "./queue.js";
import { Review } from "./review.js";
import { t } from "./words.js";

const AT_ONCE = 4;

const enqueue = createQueue(AT_ONCE);
const cards = new Set();
const mistakes = new Mistakes($("mistakes-body"));
const review = $("review") && new Review($("review-body"), () => ({ classNames, hasSeveralLabels }));

function take(files) {
  if (!files.length) return;
  mayAskForKey();
  const fresh = files.map((file) => {
    const card = createCard(file, { enqueue, chosenModel, onRemove: () => remove(card) });
    cards.add(card);
    return card;
  });
  $("results").hidden = false;
  $("cards").prepend(...fresh.map((card) => card.element));
  if (files.length > 1) say(t("Sending {count} pictures.", { count: files.length }));
  for (const card of fresh) card.ask();
}

function remove(card) {
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  card.close();
  cards.delete(card);
  $("results").hidden = cards.size === 0;
  (next?.querySelector(".remove") ?? $("choose")).focus(); // otherwise the keyboard focus would return to the top of the page
}

let classNames = [];
let hasSeveralLabels = false; // whether a picture may have several of the classes

async function refreshModels() {
  const notice = $("notice");
  try {
    const { default: own, problem } = await loadModels((names, several) => {
      [classNames, hasSeveralLabels] = [names, several];
      offerSamples(classNames, take);
      if ($("mistakes").open) mistakes.show(chosenModel());
      if ($("review")?.open) review.show();
    });
    tell(own ? "" : t("There is no model yet."), problem);
  } catch (error) {
    tell(error.message, error.detail, smallButton(t("Try again"), refreshModels));
  }

  function tell(words, detail, ...more) {
    notice.hidden = !words;
    notice.replaceChildren(...(words ? [h("strong", {}, words), " ", detail ?? "", " ", ...more] : []));
  }
}

listen(take);
$("again").addEventListener("click", () => {
  mayAskForKey();
  cards.forEach((card) => card.ask());
});
$("clear").addEventListener("click", () => {
  cards.forEach((card) => card.close());
  cards.clear();
  $("results").hidden = true;
  $("choose").focus();
});
$("mistakes").addEventListener("toggle", () => $("mistakes").open && mistakes.show(chosenModel()));
if (review) {
  $("review").addEventListener("toggle", () => {
    mayAskForKey();
    if ($("review").open) review.show();
  });
}
refreshModels();
