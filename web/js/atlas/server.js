// What the panel asks the server.

import { api } from "../../../../scripts/api.js";

async function read(response) {
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const path = (name, query) => `/saeuron/atlas/${name}?${new URLSearchParams(query)}`;

export const ask = async (name, query = {}) => read(await api.fetchApi(path(name, query)));

export const tell = async (name, content) =>
  read(
    await api.fetchApi(`/saeuron/atlas/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(content),
    }),
  );

export const pictureUrl = (name, query) => api.apiURL(path(name, query));
