//! Adapters of a batch, resolved once and used by each layer.

use crate::selection::{BASE, Selection};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use std::sync::{Arc, Mutex, MutexGuard};

/// Adapters that a batch runs with: a [`Selection`] checked by a model
/// ([`activate`](crate::AdaptableExt::activate)) and passed along with the batch, so that requests with
/// different adapters can share one `&model`. Its tensors are copied to the device once.
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// # use burn_lora_adapter::{*, doc};
/// # let device = Device::default();
/// # let model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
/// let model = model.with_adapter(&lora)?;
///
/// let x = Tensor::<2>::ones([2, 16], &device);
/// let (on, off) = (model.activate(Selection::adapters(["default"]))?, model.activate(Selection::base())?);
/// let mixed = model.activate(Selection::rows(["default", BASE]))?;
/// let run = |active| model.linear.forward_with(x.clone(), Some(active));
/// let y = run(&mixed);
/// y.clone().narrow(0, 0, 1).into_data().assert_approx_eq::<f32>(
///     &run(&on).narrow(0, 0, 1).into_data(), burn::tensor::Tolerance::default());
/// y.narrow(0, 1, 1).into_data().assert_eq(&run(&off).narrow(0, 1, 1).into_data(), true);
/// # Ok::<_, AdapterError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ActiveAdapters(Arc<Active>);

#[derive(Debug, Default)]
struct Active {
    selection: Selection,
    /// For a selection by rows: each adapter once, with its rows.
    groups: Vec<(String, Vec<usize>)>,
    on: Mutex<Vec<Arc<Rows>>>,
}

/// Rows of a batch by adapter, on a device.
#[derive(Debug)]
pub(crate) struct Rows {
    device: Device,
    count: usize,
    /// Each adapter with the indices of its rows.
    groups: Vec<(String, Tensor<1, Int>)>,
    /// Position of each row of the batch in the concatenated groups.
    position: Tensor<1, Int>,
    /// Index of the adapter of each row.
    row_group: Vec<usize>,
    /// Known masks of stacked updates: see [`others`](Self::others).
    masks: Mutex<Vec<Mask>>,
}

/// Stacked updates, each the number of its adapter and a rank, and their mask.
type Mask = (Vec<(usize, usize)>, Tensor<2, Bool>);

impl ActiveAdapters {
    /// Creates the adapters of a selection that the model has checked.
    pub(crate) fn new(selection: Selection) -> Self {
        let mut groups: Vec<(String, Vec<usize>)> = vec![];
        if let Selection::Rows(rows) = &selection {
            for (row, name) in rows.iter().enumerate() {
                match groups.iter_mut().find(|(known, _)| known == name) {
                    Some((_, rows)) => rows.push(row),
                    None => groups.push((name.clone(), vec![row])),
                }
            }
        }
        Self(Arc::new(Active { selection, groups, on: Mutex::default() }))
    }

    /// Selection that this was created from.
    pub fn selection(&self) -> &Selection {
        &self.0.selection
    }

    /// Names of the selection: for the whole batch, or one per row.
    pub(crate) fn names(&self) -> &[String] {
        let (Selection::Adapters(names) | Selection::Rows(names)) = &self.0.selection;
        names
    }

    /// Runs a part of a model that mixes the rows of a batch: with these adapters, or, if they are
    /// selected by rows, once for each adapter with its rows. The results are put in the order of the
    /// batch.
    ///
    /// # Panics
    /// If the batch has a different number of rows.
    pub fn each<const D: usize>(
        &self,
        x: Tensor<D>,
        mut run: impl FnMut(Tensor<D>, &Self) -> Tensor<D>,
    ) -> Tensor<D> {
        let Some(rows) = self.rows(x.dims()[0], &x.device()) else { return run(x, self) };
        rows.each(|names, indices| {
            let names = names.iter().filter(|name| *name != BASE);
            let active = Self::new(Selection::adapters(names));
            run(x.clone().select(0, indices.clone()), &active)
        })
    }

    /// Rows by adapter on a device, if the selection is by rows.
    ///
    /// # Panics
    /// If the batch has a different number of rows.
    pub(crate) fn rows(&self, batch: usize, device: &Device) -> Option<Arc<Rows>> {
        let Selection::Rows(rows) = &self.0.selection else { return None };
        assert_eq!(batch, rows.len(), "a batch of {batch} with adapters for {} rows", rows.len());
        let mut known = lock(&self.0.on);
        if let Some(rows) = known.iter().find(|rows| rows.device == *device) {
            return Some(rows.clone());
        }
        let rows = Arc::new(Rows::new(&self.0.groups, batch, device));
        known.push(rows.clone());
        Some(rows)
    }
}

impl PartialEq for ActiveAdapters {
    fn eq(&self, other: &Self) -> bool {
        self.selection() == other.selection()
    }
}

impl Eq for ActiveAdapters {}

impl Rows {
    fn new(groups: &[(String, Vec<usize>)], count: usize, device: &Device) -> Self {
        let index = |rows: &[usize]| {
            let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            let shape = [rows.len()];
            Tensor::<1, Int>::from_data(TensorData::new(rows, shape), device)
        };
        let (mut position, mut row_group, mut at) = (vec![0; count], vec![0; count], 0);
        for (group, (_, rows)) in groups.iter().enumerate() {
            for &row in rows {
                (position[row], row_group[row]) = (at, group);
                at += 1;
            }
        }
        let groups = groups.iter().map(|(name, rows)| (name.clone(), index(rows)));
        Self {
            device: device.clone(),
            count,
            groups: groups.collect(),
            position: index(&position),
            row_group,
            masks: Mutex::default(),
        }
    }

    /// Names of the adapters, each once.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.groups.iter().map(|(name, _)| name)
    }

    /// Runs each adapter on its rows and returns the results in the order of the batch.
    pub fn each<const D: usize>(
        &self,
        mut run: impl FnMut(&[String], &Tensor<1, Int>) -> Tensor<D>,
    ) -> Tensor<D> {
        let parts = self.groups.iter().map(|(name, rows)| run(std::slice::from_ref(name), rows));
        Tensor::cat(parts.collect(), 0).select(0, self.position.clone())
    }

    /// Returns the mask of stacked updates, each the number of its adapter and a rank: `true` where a
    /// rank belongs to another adapter than the row's, `[rows, ranks]`.
    pub fn others(&self, updates: &[(usize, usize)]) -> Tensor<2, Bool> {
        let mut known = lock(&self.masks);
        if let Some((_, mask)) = known.iter().find(|(other, _)| other == updates) {
            return mask.clone();
        }
        let ranks = || updates.iter().flat_map(|&(number, rank)| std::iter::repeat_n(number, rank));
        let mask = self.row_group.iter().flat_map(|group| ranks().map(move |own| own != *group));
        let mask = TensorData::new(mask.collect::<Vec<bool>>(), [self.count, ranks().count()]);
        let mask = Tensor::from_data(mask, &self.device);
        known.push((updates.to_vec(), mask.clone()));
        mask
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
